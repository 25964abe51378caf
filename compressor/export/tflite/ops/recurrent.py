"""LSTM, GRU and RNN."""


HANDLERS = {}
