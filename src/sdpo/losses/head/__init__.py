"""The numbers of `losses/reference.py`, fast: one pass over the head in chunks gives loss and
gradient.

From the outside in: `fused.py` (the pass as one autograd function), `chunks.py` (chunk by chunk,
tile by tile), `logits.py` (matrix products), `elementwise.py` (one tile), `support.py` (support and
divergence on one tile), `outputs.py` (what is kept per token).

*Chunk*: tokens whose logits come out of one matrix product. *Tile*: as many tokens of a chunk as
stay in cache while everything elementwise is done to their logits.
"""
