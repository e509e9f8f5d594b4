"""Taggers for named entities: CNN-CNN-LSTM and its relatives (Shen et al., 2018)."""
