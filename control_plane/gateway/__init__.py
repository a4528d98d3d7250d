"""The embedded gateway: OpenFaaS' REST API on loopback, with functions as processes of this machine."""

from control_plane.gateway.deployment_file import gateway_folder
from control_plane.gateway.launch import embedded_gateway, fork_servers

__all__ = ["embedded_gateway", "fork_servers", "gateway_folder"]
