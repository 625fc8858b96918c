import json
from ipaddress import IPv4Network
from itertools import pairwise

import pytest

from e2e.cluster import network
from e2e.cluster.errors import ClusterError

CLUSTER = "00000021"  # slot 33


def test_a_cluster_has_the_same_addresses_each_time() -> None:
    first, second = network.choose(CLUSTER, []), network.choose(CLUSTER, [])

    assert first == second
    assert (str(first.host), str(first.node)) == ("10.201.33.1", "10.201.33.2")
    assert (str(first.pods), str(first.services)) == ("10.202.33.0/24", "10.203.33.0/24")
    assert (str(first.api_service), str(first.dns_service)) == ("10.203.33.1", "10.203.33.10")


@pytest.mark.parametrize("taken", ["10.201.33.0/30", "10.202.33.128/25", "10.203.33.7/32"])
def test_a_slot_is_passed_over_if_any_of_its_networks_is_taken(taken: str) -> None:
    assert network.choose(CLUSTER, [IPv4Network(taken)]).slot == 34


def test_the_search_goes_on_at_the_first_slot_after_the_last() -> None:
    assert network.choose("000000ff", [IPv4Network("10.201.255.0/24")]).slot == 0


def test_no_free_slot_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ClusterError, match="No free addresses") as caught:
        network.choose(CLUSTER, [IPv4Network("10.0.0.0/8")])

    assert "ip route" in caught.value.fix


def test_networks_of_one_slot_never_overlap_those_of_another() -> None:
    every = [net for slot in range(256) for net in network.Addresses(slot, "l").networks]

    collapsed = {int(net.network_address): net for net in every}
    ordered = [collapsed[start] for start in sorted(collapsed)]
    assert len(ordered) == 3 * 256
    assert not any(a.overlaps(b) for a, b in pairwise(ordered))


def test_interface_names_fit_the_kernels_limit() -> None:
    assert len(network.link_name("ffffffff")) <= 15


def test_taken_networks_are_those_of_interfaces_and_routes_but_not_routes_to_everywhere() -> None:
    addresses = [
        {"addr_info": [{"family": "inet", "local": "192.0.2.2", "prefixlen": 24}, {"family": "inet6"}]},
        {"ifname": "no-address"},
    ]
    routes = [
        {"dst": "default"},
        {"dst": "0.0.0.0/1"},
        {"dst": "10.0.0.0/8"},
        {"dst": "10.9.0.0/16"},
        {"type": "local", "dst": "127.0.0.1"},
    ]

    taken = network.parse_taken(json.dumps(addresses), json.dumps(routes))

    assert [str(net) for net in taken] == ["192.0.2.0/24", "10.9.0.0/16", "127.0.0.1/32"]
    assert network.parse_taken("", "") == []
