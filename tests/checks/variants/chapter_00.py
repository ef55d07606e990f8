"""Right answers to the exercises of chapter 0 that are written otherwise than the solution."""

VARIANTS = {
    "rms_norm": [
        # As Meta's own code does it: float32 throughout, whatever came.
        """
def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).type_as(x) * weight
""",
        # The weight before going back.
        """
def rms_norm(x, weight, eps):
    wide = x.double()
    return (weight.double() * wide / torch.sqrt((wide * wide).sum(-1, keepdim=True) / x.shape[-1] + eps)).to(x.dtype)
""",
        # Row by row.
        """
def rms_norm(x, weight, eps):
    rows = [row.double() / (row.double().square().mean() + eps).sqrt() for row in x.reshape(-1, x.shape[-1])]
    return (torch.stack(rows) * weight.double()).to(x.dtype).reshape(x.shape)
""",
        # PyTorch's module.
        """
def rms_norm(x, weight, eps):
    norm = torch.nn.RMSNorm(x.shape[-1], eps=eps, device=x.device)
    return (norm(x.float()) * weight.float()).detach().to(x.dtype)
""",
    ],
    "rotate": [
        """
def rotate(x, positions, frequencies):
    return le.rotate(x, *le.rope_angles(frequencies, positions, x.dtype))
""",
        # Complex numbers.
        """
def rotate(x, positions, frequencies):
    first, second = x.float().chunk(2, dim=-1)
    turn = torch.polar(torch.ones(()).to(x.device), (positions[..., None, None] * frequencies).float())
    turned = torch.complex(first.contiguous(), second.contiguous()) * turn
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)
""",
        # As Hugging Face writes it: x·cos + rotated half·sin, angles in float64.
        """
def rotate(x, positions, frequencies):
    angles = torch.einsum("bt,f->btf", positions.to(torch.float64), frequencies.to(torch.float64))
    angles = torch.cat((angles, angles), dim=-1)[:, :, None]
    half = x.shape[-1] // 2
    partners = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * angles.cos() + partners * angles.sin()).to(x.dtype)
""",
        # Token by token.
        """
def rotate(x, positions, frequencies):
    out, half = torch.empty_like(x), x.shape[-1] // 2
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            angle = positions[row, column] * frequencies
            a, b = x[row, column, :, :half], x[row, column, :, half:]
            out[row, column, :, :half] = a * angle.cos() - b * angle.sin()
            out[row, column, :, half:] = b * angle.cos() + a * angle.sin()
    return out
""",
    ],
    "swiglu": [
        """
def swiglu(x, w1, w2, w3):
    F = torch.nn.functional
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)
""",
        """
def swiglu(x, w1, w2, w3):
    z = torch.einsum("btd,hd->bth", x, w1) if x.dim() == 3 else x @ w1.T
    return torch.matmul(z * torch.sigmoid(z) * torch.matmul(x, w3.T), w2.T)
""",
        """
def swiglu(x, w1, w2, w3):
    gate, gated = (x @ torch.cat((w1, w3)).T).chunk(2, dim=-1)
    return (gated * (gate / (1 + (-gate).exp()))) @ w2.T
""",
    ],
    "count_parameters": [
        """
def count_parameters(config):
    shapes = [(config.vocab_size, config.dim)] * (1 if config.tie_embeddings else 2) + [(config.dim,)]
    for _ in range(config.n_layers):
        shapes += [(config.dim, config.n_heads * config.head_dim)] * 2 + [(config.dim, config.kv_dim)] * 2
        shapes += [(config.dim, config.hidden_dim)] * 3 + [(config.dim,)] * 2
    return sum(torch.Size(shape).numel() for shape in shapes)
""",
        """
def count_parameters(config):
    d, h = config.dim, config.hidden_dim
    layer = sum((d * config.n_heads * config.head_dim, d * config.kv_dim, d * config.kv_dim,
                 config.n_heads * config.head_dim * d, d * h, d * h, h * d, d, d))
    total = config.vocab_size * d + config.n_layers * layer + d
    if not config.tie_embeddings:
        total += d * config.vocab_size
    return total
""",
    ],
}
