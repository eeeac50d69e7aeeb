"""The small operators against float64, how kernels are chosen, and all kernels on lesser instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from rayloom.engine import kernels
from rayloom.engine.kernels.build import BuildError, build
from rayloom.engine.masks import mask_from_flags
from rayloom.engine.processors import apply_masks

SIZES = [(0, 8), (1, 1), (1, 64), (3, 17), (5, 100), (33, 576), (70, 1536)]


def draw(*sizes: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes))) * scale


@pytest.mark.parametrize("norm", [kernels.rms_norm, kernels.rms_norm_torch])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(norm, size, with_residual):
    x, residual, weight = draw(*size), draw(*size, scale=1.0) if with_residual else None, draw(size[1])
    summed = x + residual if residual is not None else x.clone()
    wanted = functional.rms_norm(summed.double(), (size[1],), weight.double(), 1e-5)
    torch.testing.assert_close(norm(x, weight, 1e-5, residual).double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, summed)


@pytest.mark.parametrize("rope", [kernels.rope, kernels.rope_torch])
@pytest.mark.parametrize(
    ("num_heads", "dim", "turned"), [(1, 2, 2), (3, 64, 64), (2, 20, 20), (4, 80, 32), (9, 96, 96)]
)
def test_rope_turns_pairs(rope, num_heads, dim, turned):
    wide = draw(7, (num_heads + 1) * dim)
    x_THD = wide[:, dim:].unflatten(1, (num_heads, dim))
    angles = draw(7, turned // 2).double()
    cosines, sines = (part.repeat(1, 2).float() for part in (angles.cos(), angles.sin()))
    pairs = torch.complex(x_THD[..., : turned // 2].double(), x_THD[..., turned // 2 : turned].double())
    wanted = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    kept, before = x_THD[..., turned:].clone(), wide[:, :dim].clone()
    rope(x_THD, cosines, sines)
    both = torch.cat((wanted.real, wanted.imag), -1).float()
    torch.testing.assert_close(x_THD[..., :turned], both, rtol=1e-5, atol=1e-5)
    assert torch.equal(x_THD[..., turned:], kept)
    assert torch.equal(wide[:, :dim], before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize(
    ("operator", "activation"),
    [
        (kernels.silu_mul, functional.silu),
        (kernels.silu_mul_torch, functional.silu),
        (kernels.gelu_new_mul, lambda x: functional.gelu(x, approximate="tanh")),
        (kernels.gelu_new_mul_torch, lambda x: functional.gelu(x, approximate="tanh")),
    ],
)
def test_gated_activations(operator, activation, size, scale):
    gate_up = draw(size[0], 2 * size[1], scale=scale)
    gate, up = gate_up.double().chunk(2, -1)
    torch.testing.assert_close(operator(gate_up).double(), activation(gate) * up, rtol=2e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("gelu", [kernels.gelu_new, kernels.gelu_new_torch])
@pytest.mark.parametrize("size", [*SIZES, (11, 4096)])
def test_gelu_new_works_in_place(gelu, size):
    x = draw(*size)
    wanted = functional.gelu(x.double(), approximate="tanh")
    assert gelu(x) is x
    torch.testing.assert_close(x.double(), wanted, rtol=2e-5, atol=1e-6)


def test_activations_keep_what_is_not_finite():
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]])
    for operator in (kernels.gelu_new, kernels.gelu_new_torch):
        out = operator(x.clone())[0]
        assert out[0].isnan()
        assert out[1] == torch.inf
        assert out[3].isfinite()


def test_a_missing_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere" / "g++"))
    with pytest.raises(BuildError, match="cannot be built"):
        build()


def test_a_failing_compiler_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLOOM_CACHE", str(tmp_path))
    monkeypatch.setenv("RAYLOOM_KERNELS_FLAGS", "-march=of-no-known-make")
    with pytest.raises(BuildError, match="of-no-known-make"):
        build()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 97, 1024, 50257])
def test_masks(size, monkeypatch):
    """The kernel and the plain path, for rows between others and masks longer than need be."""
    generator = np.random.default_rng(size)
    shares = (0.0, 0.01, 0.5, 0.99, 1.0)
    flags = [np.zeros(-(-size // 32) * 32 + 64, dtype=np.bool_) for _ in shares]
    for flag, share in zip(flags, shares, strict=True):
        flag[:size] = generator.random(size) < share
    masks = [mask_from_flags(flag) if place != 2 else None for place, flag in enumerate(flags)]
    scores_RV = draw(len(shares), size)
    wanted_RV = scores_RV.clone()
    for place in (0, 1, 3, 4):
        wanted_RV[place, ~torch.from_numpy(flags[place][:size])] = -torch.inf
    wide = draw(len(shares), size + 5)
    wide[:, :size] = scores_RV
    kept = wide[:, size:].clone()
    assert torch.equal(apply_masks(wide[:, :size], masks), wanted_RV)
    assert torch.equal(wide[:, size:], kept)
    monkeypatch.setattr(kernels, "native", lambda: None)
    assert torch.equal(apply_masks(scores_RV, masks), wanted_RV)


def run_here(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"RAYLOOM_KERNELS": "off"}, {"CXX": "/nowhere/g++"}], ids=["off", "no compiler"]
)
def test_without_kernels_torch_does_the_work(environment):
    script = (
        "import logging; logging.basicConfig()\n"
        "import torch; from rayloom.engine import kernels, linear\n"
        "print(kernels.available(), type(linear.make_linear(torch.ones(2, 2), precision='int8')).__name__)"
    )
    result = run_here(environment, "-c", script)
    assert result.stdout.split() == ["False", "TorchInt8Linear"], result.stderr
    assert result.stderr.count("C++ kernels are off") == (1 if "CXX" in environment else 0)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-march=native -mno-amx-tile", "-march=x86-64-v3"])
def test_lesser_instruction_sets(flags):
    """The same tests on what such a CPU would run. (No flag can show more than this machine has.)"""
    if not kernels.available():
        pytest.skip("no kernels on this machine")
    names = ("attention", "linear", "kernels", "adapter_rows", "selection")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    result = run_here({"RAYLOOM_KERNELS_FLAGS": flags}, "-m", "pytest", "-q", "-m", "not slow", *files)
    assert result.returncode == 0, result.stdout[-3000:]
