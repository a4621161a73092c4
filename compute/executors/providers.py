"""ONNX Runtime's providers as values: what each is asked for, and what shows that it is used.

Part of *execute*. Pure, and without ONNX Runtime: `shoal.compute.executors.onnxruntime` opens
sessions by these values and asks here what to make of what it got.

A provider of a card is asked for with everything off that shortens float32 or depends on the
moment. Names and meanings are those of ONNX Runtime's
``core/providers/cuda/cuda_execution_provider_info.cc``,
``core/providers/migraphx/migraphx_execution_provider_info.h`` and
``core/session/onnxruntime_session_options_config_keys.h``; a provider refuses a name that it
does not know, and its canary then says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from shoal.compute.card_memory import OVERHEAD_BYTES
from shoal.compute.errors import ComputeError
from shoal.compute.graph import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.compute.devices.cards import Card, Runtime

RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"
"""With it a session tells which provider each node was given to."""

DISABLE_CPU: Final = "session.disable_cpu_ep_fallback"
"""With it no session opens of which the main graph has a node on the CPU. Bodies of loops and
branches are not looked at by it, so that placement is looked at as well."""

CPU_NAME: Final = "CPUExecutionProvider"

MISSING: Final = "provider_missing"
"""Code of the lack of a provider in the build that is installed."""

_HAS_TO_FIT: Final = (
    "this build of ONNX Runtime has to fit the card's driver, and the libraries that it takes "
    "have to be there: https://onnxruntime.ai/docs/execution-providers says which"
)

_TOLD_NODES: Final = 3


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider, as sessions are opened for it.

    Attributes:
        name: ONNX Runtime's.
        package: The distribution on PyPI whose build has it, as pip is told to install it.
        library: The file of it beside ONNX Runtime's own; "" where there is none.
        options: The provider's own, as it is given them and as it tells them again.
        session: Entries of a session's configuration.
        run: Entries of a run's configuration.
        card: The id of the card that it computes on; "" for the CPU.
        memory_bytes: What a unit may use of the card's memory at most.
    """

    name: str
    package: str
    library: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, str] = field(default_factory=dict)
    card: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stray:
    """A node that another provider was given."""

    node: str
    operator: str
    provider: str

    def __str__(self) -> str:
        """For a sentence."""
        name = f" {self.node!r}" if self.node else ""
        return f"{self.operator}{name} on {self.provider}"


CPU: Final = Provider(CPU_NAME, "onnxruntime")

NAMES: Final[Mapping[Runtime, tuple[str, str, str]]] = {
    "cuda": (
        "CUDAExecutionProvider",
        "onnxruntime-gpu[cuda,cudnn]",
        "libonnxruntime_providers_cuda.so",
    ),
    "hip": (
        "MIGraphXExecutionProvider",
        "onnxruntime-migraphx",
        "libonnxruntime_providers_migraphx.so",
    ),
}
"""Of each kind of card, the provider, what pip installs for it, and its library."""

_ON_CARDS: Final = {DISABLE_CPU: "1"}


def of_card(card: Card, memory_bytes: int) -> Provider:
    """The provider of a card that is the only one which this process sees.

    CUDA's serves a session's scratch memory from an arena of its own, at most of the size
    given here. Weights are not in it (``use_device_allocator_for_initializers``), so that
    what it holds can be given back when a run ends (``enable_memory_arena_shrinkage``): it
    would keep its largest size as long as the session lives, and eight are kept. TF32 is
    off; ``HEURISTIC`` chooses a convolution's algorithm by its shape, where the default tries
    all of them and takes what was fastest at that moment.

    MIGraphX compiles all of a program, for each shape it meets; half precision and int8 are
    off. It is told the limit, and serves what a compiled program works in by itself.

    Args:
        card: The card.
        memory_bytes: What a unit may use of its memory at most.
    """
    name, package, library = NAMES[card.runtime]
    limit = str(memory_bytes + OVERHEAD_BYTES)
    if card.runtime == "cuda":
        return Provider(
            name,
            package,
            library,
            options={
                "device_id": "0",
                "gpu_mem_limit": limit,
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "HEURISTIC",
                "use_tf32": "0",
            },
            session=_ON_CARDS | {"session.use_device_allocator_for_initializers": "1"},
            run={"memory.enable_memory_arena_shrinkage": "gpu:0"},
            card=card.id,
            memory_bytes=memory_bytes,
        )
    return Provider(
        name,
        package,
        library,
        options={
            "device_id": "0",
            "migraphx_mem_limit": limit,
            "migraphx_arena_extend_strategy": "kSameAsRequested",
            "migraphx_fp16_enable": "0",
            "migraphx_int8_enable": "0",
        },
        session=_ON_CARDS,
        card=card.id,
        memory_bytes=memory_bytes,
    )


def check_build(provider: Provider, version: str, available: Sequence[str]) -> None:
    """See that the installed build has a provider.

    Args:
        provider: Which one.
        version: ONNX Runtime's.
        available: The build's providers.

    Raises:
        ComputeError: ``provider_missing`` for a card, ``wrong_provider`` for the CPU: it
            has not.
    """
    if provider.name in available:
        return
    raise ComputeError(
        f"this build of ONNX Runtime ({version}) has no {provider.name}: it has "
        f"{', '.join(available)}",
        code=MISSING if provider.card else "wrong_provider",
        hint=f"`pip uninstall onnxruntime`, then `pip install '{provider.package}'` into the "
        "environment that shoal runs in: two builds overwrite each other"
        if provider.card
        else "install a build of ONNX Runtime that has it",
    )


def check_session(
    provider: Provider, named: Sequence[str], options: Mapping[str, Mapping[str, str]]
) -> None:
    """See that a session is of the provider that was asked for, and as it was asked for.

    ONNX Runtime adds the CPU to a card's session, whatever it is told; that no node went
    there is for `check_placement`.

    Args:
        provider: What was asked for.
        named: The session's providers.
        options: What each of them says its options are.

    Raises:
        ComputeError: ``wrong_provider``: it is of another one, or has other options.
    """
    wanted = [provider.name, CPU_NAME] if provider.card else [provider.name]
    if list(named) != wanted and list(named) != [provider.name]:
        raise ComputeError(
            f"ONNX Runtime chose {', '.join(named)}, not {provider.name}",
            code="wrong_provider",
            hint=_HAS_TO_FIT if provider.card else "",
        )
    told = options.get(provider.name, {})
    for name, value in provider.options.items():
        if told.get(name, value) != value:
            raise ComputeError(
                f"{provider.name} has {name}={printable(told[name])} where {value} was asked "
                "for",
                code="wrong_provider",
            )


def not_loaded(provider: Provider, why: str) -> ComputeError:
    """A provider's library that the system's loader refuses; ``why`` is what that says."""
    return ComputeError(
        f"{provider.name} does not load: {printable(why, 200)}",
        code="wrong_provider",
        hint=_HAS_TO_FIT,
    )


def strays(provider: Provider, parts: Sequence[Any]) -> list[Stray]:
    """The nodes that another provider runs, those in the bodies of others as well.

    Args:
        provider: Which should run all of them.
        parts: What ``InferenceSession.get_provider_graph_assignment_info`` gives.
    """
    return [
        Stray(printable(node.name), printable(node.op_type), part.ep_name)
        for part in parts
        if part.ep_name != provider.name
        for node in part.get_nodes()
    ]


def check_placement(provider: Provider, found: Sequence[Stray] | None) -> None:
    """See that a session's nodes were all given to its provider.

    Args:
        provider: That one.
        found: Those that were not; None where this version does not tell.

    Raises:
        ComputeError: ``wrong_provider``: it cannot be told of a card; ``unsupported_operator``
            of this node alone, with the first of them.
    """
    if found is None:
        if provider.card:
            raise ComputeError(
                f"this ONNX Runtime does not tell which nodes {provider.name} runs",
                code="wrong_provider",
                hint=f"install a newer {provider.package}",
            )
        return
    if not found:
        return
    told = ", ".join(map(str, found[:_TOLD_NODES]))
    more = f" and {len(found) - _TOLD_NODES} more" if len(found) > _TOLD_NODES else ""
    raise ComputeError(
        f"ONNX Runtime placed nodes elsewhere than on {provider.name}: {told}{more}",
        code="unsupported_operator",
        hint="ask for the class fp32 on a CPU, which runs it; a shape that is computed in the "
        "model is left to the CPU: models of fixed shapes have none",
        node=found[0].node,
        operator=found[0].operator,
    )
