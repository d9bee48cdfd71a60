"""What the scripts of tf.data share: pictures as bytes, a model that costs next to nothing, a seed."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf


def seeded() -> None:
    tf.keras.utils.set_random_seed(0)
    tf.config.threading.set_intra_op_parallelism_threads(1)


def pictures(count: int, side: int) -> list[bytes]:
    """Noise as JPEG: the dearest pictures to decode."""
    noise = [tf.random.stateless_uniform((side, side, 3), seed=[0, number], maxval=255) for number in range(count)]
    return [tf.io.encode_jpeg(tf.cast(each, tf.uint8)).numpy() for each in noise]


def model() -> tf.keras.Model:
    return tf.keras.Sequential([tf.keras.Input((16, 16, 3)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(1)])


def trainer(net: tf.keras.Model):
    """Return a step of plain gradient descent, as a graph's function."""
    optimizer = tf.keras.optimizers.SGD(0.01)

    @tf.function
    def step(pixels: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(pixels)[:, 0] - wanted) ** 2)
        gradients = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
        return loss

    return step
