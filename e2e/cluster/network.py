"""Free addresses for a cluster, and the link between the host and its node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from e2e.cluster.errors import ClusterError

# Slot n of 256 has its networks at the same place of each pool, so that a slot is easy to recognise.
_WIDE = 8
_NODE_POOL = IPv4Network("10.201.0.0/16")
_POD_POOL = IPv4Network("10.202.0.0/16")
_SERVICE_POOL = IPv4Network("10.203.0.0/16")
_SLOTS = 256

NODE_LINK = "node0"
"""The node's end of the link, inside its namespace."""


@dataclass(frozen=True)
class Addresses:
    """All addresses of one cluster."""

    slot: int
    link: str

    def _net(self, pool: IPv4Network, prefix: int) -> IPv4Network:
        return IPv4Network((int(pool.network_address) + self.slot * 256, prefix))

    @property
    def link_net(self) -> IPv4Network:
        """The two addresses of the link: the host's and the node's."""
        return self._net(_NODE_POOL, 30)

    @property
    def host(self) -> IPv4Address:
        """The host, as the node and the pods see it."""
        return self.link_net[1]

    @property
    def node(self) -> IPv4Address:
        """The node: API server, registry, node ports."""
        return self.link_net[2]

    @property
    def pods(self) -> IPv4Network:
        """The pods."""
        return self._net(_POD_POOL, 24)

    @property
    def services(self) -> IPv4Network:
        """The services."""
        return self._net(_SERVICE_POOL, 24)

    @property
    def api_service(self) -> IPv4Address:
        """The API server, as the pods see it."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        """The cluster's DNS."""
        return self.services[10]

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        """Every network that must be free."""
        return self.link_net, self.pods, self.services


def link_name(cluster: str) -> str:
    """The name of the host's end of the link; interface names have at most 15 characters."""
    return f"lk-{cluster}"


def choose(cluster: str, taken: Iterable[IPv4Network]) -> Addresses:
    """The first slot that overlaps nothing, searched from a place that depends on the cluster's name.

    So a cluster has the same addresses each time, and two clusters seldom meet at all.
    """
    used = list(taken)
    first = int(cluster, 16) % _SLOTS
    for step in range(_SLOTS):
        addresses = Addresses((first + step) % _SLOTS, link_name(cluster))
        if not any(ours.overlaps(net) for ours in addresses.networks for net in used):
            return addresses
    raise ClusterError(
        f"No free addresses: every slot of {_NODE_POOL}, {_POD_POOL} and {_SERVICE_POOL} meets a route here.",
        "Look at `ip route show table all`, and take down clusters of other checkouts.",
    )


def parse_taken(addresses_json: str, routes_json: str) -> list[IPv4Network]:
    """The networks of this host's interfaces and routes, out of what ``ip -json`` prints."""
    taken = []
    for interface in json.loads(addresses_json or "[]"):
        for info in interface.get("addr_info", []):
            if info.get("family") == "inet":
                taken.append(IPv4Network(f"{info['local']}/{info['prefixlen']}", strict=False))
    for route in json.loads(routes_json or "[]"):
        target = route.get("dst", "default")
        if target == "default":
            continue
        # Routes as wide as a VPN's overlap everything and say nothing about who uses an address.
        if (network := IPv4Network(target, strict=False)).prefixlen > _WIDE:
            taken.append(network)
    return taken


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise ClusterError(
            f"`ip {' '.join(arguments)}` failed.",
            "Network links need root with CAP_NET_ADMIN and the veth link type.",
            result.stderr,
        )
    return result.stdout


def taken_here() -> list[IPv4Network]:
    """The networks that this host uses now."""
    return parse_taken(_ip("-json", "-4", "address"), _ip("-json", "-4", "route", "show", "table", "all"))


def link_exists(link: str) -> bool:
    """True if the host has a link of this name."""
    return subprocess.run(["ip", "link", "show", link], capture_output=True).returncode == 0


def remove_link(link: str) -> bool:
    """Remove the link, and with it its other end, its addresses and its routes; False if there was none."""
    if not link_exists(link):
        return False
    subprocess.run(["ip", "link", "delete", link], capture_output=True)
    return True


def create_link(addresses: Addresses, namespace_pid: int) -> None:
    """Connect the host to the namespace, with routes to its pods and services."""
    link = addresses.link
    _ip("link", "add", link, "type", "veth", "peer", "name", NODE_LINK, "netns", str(namespace_pid))
    _ip("address", "add", f"{addresses.host}/{addresses.link_net.prefixlen}", "dev", link)
    _ip("link", "set", link, "up")
    for net in (addresses.pods, addresses.services):
        _ip("route", "add", str(net), "via", str(addresses.node), "dev", link)
