"""The same states on Ray, Spark and torch.distributed: a partition is folded into bytes, bytes are merged in a tree.

``contract`` says what a partition becomes and how two of them join, ``tree`` in which order; ``local``, ``ray``, ``spark`` and ``ranks``
bring them to the workers. Each is imported where it is used, so none of their packages is needed by the others.
"""
