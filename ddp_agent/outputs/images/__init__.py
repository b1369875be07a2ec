"""What a run shows of itself in TensorBoard: images as uint8 tensors [height, width, 3].

Drawn with Pillow: a picture costs some milliseconds, where importing matplotlib alone costs a second.
"""
