"""The one training loop and the learners made of (network, balancer)."""
