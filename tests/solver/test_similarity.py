import math

import pytest
import torch

from solver import psnr, ssim

PICTURE = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(3))


def test_psnr_by_hand() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 1.0)])
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 0.0]))
    assert math.isinf(psnr(PICTURE, PICTURE))


def test_ssim_against_its_definition_at_one_place() -> None:
    """On 11×11 pictures there is one window, so the definition can be written out."""
    a, b = PICTURE[:1, :11, :11], PICTURE[1:2, :11, :11]
    r = torch.arange(11.0) - 5
    w = torch.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * 1.5**2))
    w = w / w.sum()
    mu_a, mu_b = (w * a).sum(), (w * b).sum()
    var_a, var_b = (w * (a - mu_a) ** 2).sum(), (w * (b - mu_b) ** 2).sum()
    cov = (w * (a - mu_a) * (b - mu_b)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    torch.testing.assert_close(ssim(a, b), expected)


def test_ssim_is_a_similarity() -> None:
    noise = torch.randn(PICTURE.shape, generator=torch.Generator().manual_seed(4))
    values = [float(ssim(PICTURE, (PICTURE + s * noise).clamp(0, 1))) for s in (0, 0.05, 0.2, 1.0)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True) and values[-1] < 0.5
    other = PICTURE.flip(-1)
    torch.testing.assert_close(ssim(PICTURE, other), ssim(other, PICTURE))
    batch = torch.stack([PICTURE, other])
    torch.testing.assert_close(ssim(batch, batch.flip(0)), ssim(PICTURE, other).expand(2))
    with pytest.raises(ValueError, match="at least 11×11"):
        ssim(torch.zeros(3, 8, 32), torch.zeros(3, 8, 32))
