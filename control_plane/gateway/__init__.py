"""The embedded gateway: OpenFaaS' REST API on loopback, with functions as processes of this machine."""

from control_plane.gateway.deployment_file import gateway_folder
from control_plane.gateway.launch import embedded_gateway

__all__ = ["embedded_gateway", "gateway_folder"]
