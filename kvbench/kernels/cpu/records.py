"""What an int64 vector tells the kernel of packed codes about stored keys or values: its fields by number.

Strides are in bytes for codes and in elements for scales and bases; what is not there has address 0.
"""

from __future__ import annotations

# Codes: address, strides of rows and head groups, bytes per 8 tokens, columns that mean something, and all columns.
CODES, ROW, HEAD, GROUP_BYTES, RANK, PADDED = 0, 1, 2, 3, 4, 5

# Scales and zeros in fp16: addresses, strides, and channel groups: how many, and columns in each.
SCALE, ZERO, SCALE_ROW, SCALE_HEAD, CHANNELS, PER_CHANNEL_GROUP = 6, 7, 8, 9, 10, 11

# Codes that are read where they lie, as nibbles; what to flip in them; constant scale and zero; how to unpack others.
DIRECT, NIBBLES, FLIP, AFFINE, UNPACKING = 12, 13, 14, 15, 16

# Components, the component of each column, and what a unit of a column is worth.
WIDTH, SOURCES, WORTH = 17, 18, 19

# The decoder and its strides, the mean and its stride, components of a head, and rows of queries per KV head.
BASIS, BASIS_GROUP, BASIS_ROW, MEAN, MEAN_GROUP, DIM, PER_HEAD = 20, 21, 22, 23, 24, 25, 26

# Whether decoder and mean are in fp16.
HALVES = 27

FIELDS = 28
