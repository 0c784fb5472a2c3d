"""Dollars a month: what stands there, and what a month's work takes, on demand and on spot machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tomoray.costs.provisioned import Group, Provisioned
from tomoray.costs.workload import Workload, assumptions
from tomoray.errors import Usage
from tomoray.ingest.estimate import ARCHIVE_RATIO, SHARD_MB, NodePrice, Prices, ServicePrices

HOURS = 730.0  # of a month
DAYS = 30.4
OBJECTS_A_SERIES = 20  # small files of a stored scan beside its shards
SLICE_MB = 0.53  # of a native slice of 512 x 512
TRAINER, SERVER = "g6e.4xlarge", "g6.xlarge"  # without a plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One line of the bill. `on_demand` and `spot` are the same where no machine is in it."""

    name: str
    part: str  # standing | preprocessing | training | serving | storage
    what: str
    on_demand: float
    spot: float


def estimate_month(
    plan: Provisioned | None, work: Workload, prices: Prices, *, node: str, n_nodes: int
) -> dict[str, Any]:
    """A month of this work on what this plan provisions.

    Args:
        plan: None: machines and storage alone, without the cluster around them.
        work: what is done in the month.
        prices: with services where there is a plan.
        node: preprocessing's machine, where no group of the plan is made for it.
        n_nodes: how many of them, for the time it takes.

    Returns:
        JSON-able: `components`, `dollars` (on demand, spot; once idle), `per_unit` by both, `preprocessing_hours`,
        `assumes`.

    Raises:
        Usage: a machine without a price, or a price table without services.
    """
    groups = plan.groups if plan else {}
    cpu = next((group for group in groups.values() if not group.gpu and group.name != "system"), None)
    if cpu is not None:
        node, n_nodes = _known_type(cpu, prices), min(n_nodes, cpu.largest)
    gpus = [group for group in groups.values() if group.gpu]
    trainers = _gpu_type(gpus, "training", prices, TRAINER)
    server = _gpu_type(gpus, "serving", prices, SERVER)
    standing = list(_standing(plan, _services(prices), prices)) if plan else []
    hours = preprocessing_hours(work, price_of(node, prices).vcpus * n_nodes)
    preprocessing = list(_preprocessing(work, node, n_nodes, hours, prices))
    found = [
        *standing,
        *preprocessing,
        *_training(work, trainers, prices),
        *_serving(work, server, prices),
        *_storage(work, prices),
    ]
    totals = {
        "on_demand": round(sum(each.on_demand for each in found), 2),
        "spot": round(sum(each.spot for each in found), 2),
        "standing": round(sum(each.spot for each in standing), 2),
    }
    return {
        "components": [
            {"name": each.name, "part": each.part, "what": each.what}
            | {"on_demand": round(each.on_demand, 2), "spot": round(each.spot, 2)}
            for each in found
        ],
        "dollars": totals,
        "per_unit": _per_unit(found, work),
        "preprocessing_hours": round(hours, 3),
        "machines": {"preprocessing": node, "nodes": n_nodes, "training": trainers, "serving": server},
        "assumes": {
            "prices": f"{prices.region}, {prices.date}",
            "spot_prices": prices.spot_is,
            "month_hours": HOURS,
            **assumptions(work.rates),
        },
    }


def preprocessing_hours(work: Workload, vcpus: int) -> float:
    """Hours that preprocessing takes on these vCPUs, or its driver to hand out the series, whichever is longer."""
    return max(work.preprocessing_vcpu_hours() / vcpus, work.series / work.rates.driver_series_per_s / 3600)


def price_of(name: str, prices: Prices) -> NodePrice:
    """A machine's price. Raises `Usage` where the table lacks it."""
    if name not in prices.nodes:
        raise Usage(f"no prices for node {name!r}; the table of {prices.date} has: {', '.join(prices.nodes)}")
    return prices.nodes[name]


def _services(prices: Prices) -> ServicePrices:
    if prices.services is None:
        raise Usage("the price table has no `services`, which a plan wants; see tomoray/ingest/prices.yaml")
    return prices.services


def _standing(plan: Provisioned, services: ServicePrices, prices: Prices) -> Iterator[Component]:
    """What costs the same while nobody works."""

    def fixed(name: str, what: str, dollars: float) -> Component:
        return Component(name=name, part="standing", what=what, on_demand=dollars, spot=dollars)

    counts = plan.counts
    if n := counts.get("aws_eks_cluster", 0):
        yield fixed("EKS control plane", f"{n} x {HOURS:.0f} h", n * HOURS * services.eks_cluster_hour)
    for group in plan.groups.values():
        if group.smallest:
            price = price_of(_known_type(group, prices), prices)
            hours = group.smallest * HOURS
            yield Component(
                name=f"nodes {group.name}",
                part="standing",
                what=f"{group.smallest} x {group.instance_types[0]}, always",
                on_demand=hours * price.on_demand,
                spot=hours * (price.spot if group.spot else price.on_demand),
            )
    if plan.disk_gb:
        yield fixed("their disks", f"{plan.disk_gb:.0f} GB gp3", plan.disk_gb * services.disk_gb_month)
    if n := counts.get("aws_nat_gateway", 0):
        dollars = n * HOURS * (services.nat_hour + services.public_address_hour)
        yield fixed("NAT gateways", f"{n} with an address each; bytes not counted", dollars)
    if plan.endpoint_zones:
        dollars = plan.endpoint_zones * HOURS * services.endpoint_zone_hour
        yield fixed("interface endpoints", f"{plan.endpoint_zones}, by endpoint and zone", dollars)
    if n := counts.get("aws_kms_key", 0):
        yield fixed("KMS keys", f"{n}", n * services.key_month)
    if n := counts.get("aws_cloudwatch_metric_alarm", 0):
        yield fixed("alarms", f"{n}", n * services.alarm_month)
    if plan.cache_gb:
        yield fixed("FSx cache", f"{plan.cache_gb:.0f} GB", plan.cache_gb * services.fsx_gb_month)


def _preprocessing(work: Workload, node: str, n_nodes: int, hours: float, prices: Prices) -> Iterator[Component]:
    if not work.series:
        return
    price, node_hours = (
        price_of(node, prices),
        hours * n_nodes,
    )  # they are paid for while the driver is slower than they
    yield Component(
        name="preprocessing, machines",
        part="preprocessing",
        what=f"{work.series:,} series, {node_hours:,.1f} h of {node}",
        on_demand=node_hours * price.on_demand,
        spot=node_hours * price.spot,
    )
    gets = 2 * work.source_tb * 1e6 / SLICE_MB
    puts = OBJECTS_A_SERIES * work.series + work.source_tb * 1e6 / SHARD_MB
    dollars = gets / 1000 * prices.storage.per_thousand_gets + puts / 1000 * prices.storage.per_thousand_puts
    what = f"{gets / 1e6:,.1f} M reads, {puts / 1e6:,.2f} M writes"
    yield Component(name="preprocessing, requests", part="preprocessing", what=what, on_demand=dollars, spot=dollars)


def _training(work: Workload, node: str, prices: Prices) -> Iterator[Component]:
    if not work.patches:
        return
    price = price_of(node, prices)
    speed = min(price.gpus * work.rates.gpu_patches_per_s, price.vcpus * work.rates.stream_patches_per_vcpu_s)
    hours = work.patches / speed / 3600
    what = f"{work.epochs} epochs, {work.patches / 1e6:,.2f} M patches, {hours:,.1f} h of {node}"
    yield Component(
        name="training, machines",
        part="training",
        what=what,
        on_demand=hours * price.on_demand,
        spot=hours * price.spot,
    )


def _serving(work: Workload, node: str, prices: Prices) -> Iterator[Component]:
    if not work.studies_per_day:
        return
    price = price_of(node, prices)
    busy = work.studies_per_day * DAYS * work.rates.study_s / 3600 / max(price.gpus, 1)
    hours = max(busy, work.replicas_kept * HOURS)
    what = f"{busy:,.0f} h of {node} at work, {hours:,.0f} paid"
    dollars = hours * price.on_demand  # a model that answers people is not put on machines that may vanish
    yield Component(name="serving, machines", part="serving", what=what, on_demand=dollars, spot=dollars)


def _storage(work: Workload, prices: Prices) -> Iterator[Component]:
    for name, terabytes in (("raw DICOM", work.source_tb), ("archive", work.source_tb / ARCHIVE_RATIO)):
        if terabytes:
            dollars = terabytes * 1000 * prices.storage.per_gb_month
            what = f"{terabytes:,.2f} TB in S3 Standard; tiering makes it less"
            yield Component(name=name, part="storage", what=what, on_demand=dollars, spot=dollars)


def _per_unit(found: list[Component], work: Workload) -> dict[str, dict[str, float]]:
    """Dollars of machines and requests for one of each, without what stands there."""
    units = {
        "series": ("preprocessing", work.series),
        "epoch": ("training", work.epochs),
        "study": ("serving", work.studies_per_day * DAYS),
    }
    return {
        unit: {
            kind: round(sum(getattr(each, kind) for each in found if each.part == part) / amount, 6)
            for kind in ("on_demand", "spot")
        }
        for unit, (part, amount) in units.items()
        if amount
    }


def _known_type(group: Group, prices: Prices) -> str:
    """The first machine type of a group that has a price."""
    for name in group.instance_types:
        if name in prices.nodes:
            return name
    wanted = ", ".join(group.instance_types)
    raise Usage(f"no price for any machine of the group {group.name!r} ({wanted}); add one to --prices FILE")


def _gpu_type(groups: list[Group], purpose: str, prices: Prices, default: str) -> str:
    fitting = sorted((group for group in groups if purpose in group.name), key=lambda group: not group.spot)
    return _known_type(fitting[0], prices) if fitting else default
