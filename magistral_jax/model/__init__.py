"""One network, used to sample and to train."""
