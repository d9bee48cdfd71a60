"""Keras fit: pictures decoded in one map, made small in the next, then batched and prefetched; decoding is the limit."""

import tensorflow as tf
from tf_training import model, pictures, seeded


def load(picture: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(picture, channels=3)


def small(pixels: tf.Tensor) -> tuple[tf.Tensor, float]:
    return tf.ensure_shape(tf.cast(pixels[:16, :16], tf.float32) / 255.0, (16, 16, 3)), 1.0


def main() -> None:
    seeded()
    dataset = tf.data.Dataset.from_tensor_slices(pictures(16, 480)).repeat(12)
    dataset = dataset.map(load)  # the limit
    dataset = dataset.map(small).batch(8).prefetch(tf.data.AUTOTUNE)
    net = model()
    net.compile("sgd", "mse")
    print([f"{loss:.6f}" for loss in net.fit(dataset, epochs=3, verbose=0).history["loss"]])


if __name__ == "__main__":
    main()
