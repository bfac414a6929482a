"""Datasets of noise pairs: Parquet shards that `datasets.load_dataset` reads."""

from npnet_training.pairs.dataset import PairBatch, PairDataset
from npnet_training.pairs.info import PairInfo
from npnet_training.pairs.shard import Pairs, write_pairs

__all__ = ["PairBatch", "PairDataset", "PairInfo", "Pairs", "write_pairs"]
