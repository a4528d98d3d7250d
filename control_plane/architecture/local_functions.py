"""The functions of a partition in this process, for a trial of its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from control_plane.errors import PartitionError
from control_plane.faas.invocation import ExpertUsage
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, InvocationResult
from functions.expert.expert_block import BlockError, ExpertBlock
from functions.kernels import load_kernel


@dataclass(frozen=True)
class Computed:
    """Results that are there already. They are `PendingInvocations`."""

    results: dict[str, InvocationResult]

    def wait(self) -> dict[str, InvocationResult]:
        return self.results


class LocalFunctions:
    """Blocks of experts that are called without a gateway. It is an `ExpertInvoker`."""

    def __init__(self, partition: Path, manifest: Manifest) -> None:
        """Raises `PartitionError`."""
        kernel = load_kernel()
        try:
            self._blocks = {
                block.function: ExpertBlock.open(partition, block.function, kernel, threads=1)
                for block in manifest.blocks
            }
        except BlockError as error:
            raise PartitionError(str(error)) from error

    def begin(self, invocations: Mapping[str, Invocation]) -> Computed:
        results = {}
        for function, invocation in invocations.items():
            output, cold = self._blocks[function].run(invocation)
            results[function] = InvocationResult(output, "trial", "", 0.0, cold)
        return Computed(results)

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """Nothing: the trial's experts are small."""

    @property
    def usage(self) -> ExpertUsage:
        return ExpertUsage()

    def abort(self) -> None:
        """Nothing: no call waits."""

    def close(self) -> None:
        for block in self._blocks.values():
            block.residency.close()
