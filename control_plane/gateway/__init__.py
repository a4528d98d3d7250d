"""The embedded gateway: OpenFaaS' REST API on loopback, over functions that are processes of this machine."""

from control_plane.gateway.launch import embedded_gateway

__all__ = ["embedded_gateway"]
