"""Keras fit, several steps a call of its function: records of several files, interleaved; taking them apart is the limit."""

import tensorflow as tf
from tf_training import model, pictures, seeded


def unpacked(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {"picture": tf.io.FixedLenFeature([], tf.string), "wanted": tf.io.FixedLenFeature([], tf.float32)}
    example = tf.io.parse_single_example(record, features)
    pixels = tf.cast(tf.io.decode_jpeg(example["picture"], channels=3)[:16, :16], tf.float32) / 255.0
    return tf.ensure_shape(pixels, (16, 16, 3)), example["wanted"]


def write(name: str, made: list[bytes]) -> str:
    with tf.io.TFRecordWriter(name) as file:
        for picture in made:
            held = tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture]))
            wanted = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))
            features = tf.train.Features(feature={"picture": held, "wanted": wanted})
            file.write(tf.train.Example(features=features).SerializeToString())
    return name


def main() -> None:
    seeded()
    made = pictures(16, 480) * 24
    files = [write(f"{number}.tfrecord", made[number::4]) for number in range(4)]
    dataset = tf.data.Dataset.from_tensor_slices(files)
    dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=2, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.map(unpacked, num_parallel_calls=tf.data.AUTOTUNE)  # the limit
    dataset = dataset.batch(8).prefetch(2)
    net = model()
    net.compile("sgd", "mse", steps_per_execution=4)
    print([f"{loss:.6f}" for loss in net.fit(dataset, epochs=3, verbose=0).history["loss"]])


if __name__ == "__main__":
    main()
