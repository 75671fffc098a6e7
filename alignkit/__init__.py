"""alignkit: RLHF on pretrained checkpoints, where a batch is the trie of its sequences."""
