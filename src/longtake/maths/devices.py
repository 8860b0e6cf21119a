"""What devices are taken to do where nothing was probed: roofline numbers with usual efficiencies, not measurements.

Matrix products at 70-88 % of the dense peak in half precision; attention as FlashAttention-2 does on the same device
(arXiv 2307.08691; on Hopper FlashAttention-3's figures, arXiv 2407.08608); memory at 80 % of its peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from longtake.maths.cost import Both, Rates

GB = 1e9
CORE = 6e10  # FLOP/s of one core of a server in float32
CALL = Both(4e-5, 8e-5)  # seconds in which Python starts a layer's kernels; hidden behind long rows
STEP = 5e-5  # seconds of a layer in a decoding step under CUDA graphs


@dataclass(frozen=True, slots=True)
class Device:
    """Example: DEVICES["h200"].rates(2).linear.forward."""

    name: str
    bytes: float  # of memory
    half: Rates  # in bfloat16
    single: float  # FLOP/s of matrix products in float32
    host: float  # bytes of the machine's memory, as usually rented
    on_cpu: bool = False

    def rates(self, item: float) -> Rates:
        """Rates for numbers of that many bytes: float32 runs all its arithmetic at `single`."""
        if item < 4:
            return self.half
        slow = Both(self.single, self.single)
        return replace(self.half, linear=slow, attend=slow, head=slow, decode=self.single, encode=self.single / 2)


def _gpu(name: str, gb: float, linear: float, attend: tuple[float, float], memory: float, single: float) -> Device:
    """Rates in TFLOP/s and TB/s."""
    rates = Rates(
        linear=Both(linear * 1e12, linear * 1e12),
        attend=Both(attend[0] * 1e12, attend[1] * 1e12),
        head=Both(single * 1e12, single * 1e12),
        decode=linear * 1e12 / 4,
        encode=linear * 1e12 / 2,
        memory=0.8 * memory * 1e12,
        host=45e9 if gb > 50 else 22e9,
        disk=5e9,
        decoded=3000,  # 16 cores
        learn=memory * 1e12 / 40,
        layer=CALL,
        step=STEP,
    )
    return Device(name, gb * GB, rates, single * 1e12, 128 * GB)


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "a100": _gpu("A100 80 GB", 80, 220, (185, 160), 1.9, 18),
        "h100": _gpu("H100 80 GB", 80, 634, (370, 300), 3.0, 50),
        "h200": _gpu("H200", 141, 695, (370, 300), 4.3, 50),
        "rtx4090": _gpu("RTX 4090", 24, 140, (125, 100), 1.0, 60),
        "l40s": _gpu("L40S", 48, 200, (150, 120), 0.86, 65),
    }
)


def cpu(cores: int, memory: float) -> Device:
    """This machine's processor: `memory` bytes; one kind of arithmetic, in float32."""
    flops = CORE * max(1, cores)
    rates = Rates(
        linear=Both(flops, flops),
        attend=Both(flops, flops),
        head=Both(flops, flops),
        decode=flops / 4,
        encode=flops / 2,
        memory=2e10,
        host=1e10,
        disk=1e9,
        decoded=190 * max(1, cores),
        learn=2e8,
        layer=Both(5e-4, 1e-3),
        step=4e-4,
    )
    return Device(f"CPU, {cores} cores", memory, rates, flops, memory, on_cpu=True)
