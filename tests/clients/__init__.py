"""The clients that people use, unmodified, against a server: `make clients`.

They run in an environment of their own, without FaaSMoE's. So nothing here imports it, and the server is a
process of the other environment.
"""
