"""The contract between the control plane and its expert functions: everything that both sides import."""
