"""The library of a CPU's fp32 products: taken where it is faster and exact, and put back."""

import pytest
import torch

from minialpaca import products

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Says what the machine is: its /proc/cpuinfo, and how exact oneDNN's products are."""
    def say(cpuinfo, error=None):
        path = tmp_path / "cpuinfo"
        path.unlink(missing_ok=True)
        if cpuinfo:
            path.write_text(cpuinfo)
        monkeypatch.setattr(products, "CPUINFO", path)
        if error is not None:
            monkeypatch.setattr(products, "relative_error", lambda allowed: error)
        products.library.cache_clear()

    yield say
    monkeypatch.undo()
    products.library.cache_clear()


@pytest.mark.parametrize("cpuinfo, error, library", [
    ("vendor_id\t: AuthenticAMD\n", 9e-7, "oneDNN"),
    ("vendor_id\t: AuthenticAMD\n", 2e-3, "MKL"),  # it has units for bf16 and makes use of them
    ("vendor_id\t: GenuineIntel\n", 9e-7, "MKL"),
    (None, 9e-7, "MKL")])
def test_onednn_is_taken_on_amd_where_it_is_exact(machine, cpuinfo, error, library):
    machine(cpuinfo, error)
    assert products.library() == library and products.said(CPU) == f", fp32 products by {library}"
    with products.chosen(CPU):
        assert torch.get_float32_matmul_precision() == {"oneDNN": "medium", "MKL": "highest"}[library]
    assert torch.get_float32_matmul_precision() == "highest"


def test_no_gpu_is_told_to_multiply_shorter(machine):
    machine("vendor_id\t: AuthenticAMD\n", 0.0)
    with products.chosen(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest"
    assert products.said(torch.device("cuda")) == ""


def test_what_was_allowed_before_comes_back_after_an_exception_too(machine):
    machine("vendor_id\t: AuthenticAMD\n", 0.0)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), products.chosen(CPU):
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_error_is_measured_with_what_is_allowed(monkeypatch):
    assert 1e-8 < products.relative_error("highest") < 5e-6
    exact, seen = torch.Tensor.__matmul__, []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(torch.get_float32_matmul_precision()) or
                        (exact(a, b) if a.dtype == torch.float64 else exact(a.bfloat16(), b.bfloat16()).float()))
    assert products.relative_error("medium") > 1e-3 and seen == ["highest", "medium"]


def test_on_this_machine_the_chosen_products_are_exact():
    a, b = (torch.randn(300, 200, generator=torch.Generator().manual_seed(i)) for i in range(2))
    with products.chosen(CPU):
        torch.testing.assert_close(a @ b.T, (a.double() @ b.double().T).float(), rtol=1e-5, atol=1e-4)
