"""Pictures for TensorBoard: uint8 tensors [height, width, 3].

They are drawn with Pillow: 0.07 s to import and about 10 ms per picture. matplotlib needs 1.5 s and 25 to 80 times as
long per picture, torchvision (for `make_grid`) 6 s, and the other ranks wait for rank 0 at every evaluation.
"""
