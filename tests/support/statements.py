"""Layers in one line of Python, by where they move a window's change."""

POINT = """
x = x.clamp(-1, 0.5)
x = x.clamp(min=0)
x = x.clone(); x.relu_()
x = torch.exp(-x * x)
x = (x * x + 1).sqrt()
x = x.pow(2) - 1
x = x / (1 + x.abs())
x = torch.where(x > 0, x, 0.1 * x)
x = x.masked_fill(x < 0, 0.0)
x = x * (x > 0)
x = x * (x > 0).to(x.dtype)
x = torch.maximum(x, -0.5 * x)
x = 1 - x
x = 2 / (1 + x.exp())
x = torch.addcmul(x, x, x, value=0.5)
x = torch.lerp(x, -x, 0.3)
x = -x
x = x.clone(); x.mul_(0.5).add_(1)
x = x.detach()
x = x.clone()
x = x.contiguous()
x = x.to(torch.float64).to(x.dtype)
x = x.to(x.dtype).type_as(x)
x = torch.atan2(x, 2 + x.abs())
x = torch.add(x, x, alpha=0.5).sin()
x = torch.sub(x, 1, alpha=2).cos()
x = x + torch.ones_like(x) * 0.5
x = x * torch.tensor(0.5, dtype=x.dtype)
x = x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
x = x * torch.arange(1, x.shape[1] + 1).view(-1, *[1] * (x.dim() - 2)).to(x.dtype) / 4
x = F.relu(x) + F.relu(-x, inplace=True)
""".strip().splitlines()

CHANNEL = """
x = torch.cat([x, -x], 1)
x = torch.cat([x[:, :1], x, x[:, -1:]], dim=-x.dim() + 1)
a, b = x.chunk(2, 1) if x.shape[1] > 1 else (x, x); x = torch.cat([b, a], 1)
a, b = x.split([1, x.shape[1] - 1], 1); x = torch.cat([a * 2, b], 1)
x = x[:, 1:] if x.shape[1] > 1 else x
x = x[:, ::2]
x = x[:, -1:] * x
x = x[:, list(range(x.shape[1]))[::-1]]
x = x.flip(1)
x = x.narrow(1, 0, max(1, x.shape[1] - 1))
x = x.repeat(1, 2, *[1] * (x.dim() - 2))
x = x.repeat_interleave(2, 1)
x = torch.stack(x.unbind(1)[::-1], 1)
x = x[:, :1].expand(-1, 3, *[-1] * (x.dim() - 2))
x = torch.cat([x[:, i:i + 1] * (i + 1) for i in range(x.shape[1])], 1)
x = F.glu(torch.cat([x, x * x], 1), 1)
x = x.softmax(1)
x = F.log_softmax(x, dim=1)
x = F.softmax(x, 1, dtype=torch.float64).to(x.dtype)
x = x.logsumexp(1, keepdim=True)
x = x.sum(1, keepdim=True) + x
x = x.mean(1).unsqueeze(1)
x = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
x = x.max(1, keepdim=True).values + x
x = x.std(1, keepdim=True, correction=0).square() * x
x = x.cumsum(1)
x = x.roll(1, 1)
x = F.pad(x, [0, 0] * (x.dim() - 2) + [1, 2], value=0.5)
x = x.clone(); x[:, 0] = x[:, -1] * 2
x = x.clone(); x[:, :1].mul_(2)
x = x.clone(); x[:, -1:] += x[:, :1].sigmoid()
y = x.new_zeros(x.shape); y[:, :1] = x[:, -1:]; x = x + y
x = x.clone(); a = x.view(x.shape[0], -1); a += 1; x = x * a.view_as(x)
x = x.movedim(1, -1); x = (x * 2).movedim(-1, 1)
x = x.transpose(1, -1).relu().transpose(1, -1)
a = torch.stack([x, x * x], 2); x = a.sum(2)
x = torch.cat([x, x.mean(tuple(range(2, x.dim())), keepdim=True).expand_as(x)], 1)
""".strip().splitlines()

SPATIAL = """
x = x[..., 1:-1] if x.shape[-1] > 2 else x
x = x[..., ::2]
x = x[:, :, 1:]
x = x[:, :, -3:]
x = x[..., :-1] + x[..., 1:]
x = x.flip(-1)
x = x.flip(2, -1)
x = x.roll(2, -1)
x = x.roll((1, -1), (2, -1)) if x.dim() > 3 else x.roll(-1, -1)
x = x.transpose(2, -1)
x = x.movedim(2, -1)
x = torch.cat([x, x.flip(-1)], -1)
x = torch.cat([(x * 4).round().long(), x], -1)
x = torch.cat([x[:, :, :1], x], 2)
x = x.repeat_interleave(2, 2)
x = torch.stack(x.split(1, -1), -1).squeeze(-2)
x = x.mean(-1, keepdim=True) + x
x = x - x.mean(tuple(range(2, x.dim())), keepdim=True)
x = x.amax(2, keepdim=True) * x
x = x * x.mean(2, keepdim=True).sigmoid()
x = x / (1 + x.var(-1, keepdim=True, correction=0))
x = x.unsqueeze(2).squeeze(2)
x = x.unfold(-1, 2, 1).mean(-1) if x.shape[-1] > 1 else x
x = x.clone(); x[..., 1:3] = 0.5
x = x.clone(); x[..., ::2] += 1
x = x.clone(); x[..., 1:] = x[..., :-1].clone()
y = torch.zeros_like(x); y[..., 1:] = x[..., :-1]; x = y
y = torch.empty_like(x); y.copy_(x); x = y
x = x.clone(); x[..., -1].zero_()
x = x.clone(); a = x[:, :1]; a[..., 0] = 1; x = x + a
x = F.pad(x, [1, 0]); x = x[..., :-1] * 2
x = x.flatten(2).softmax(-1).view_as(x)
""".strip().splitlines()

# Volumes laid beside or into each other, and what comes after padding: where a window of one part
# reaches is not where it reaches of the other.
SPLICE = """
x = torch.cat([x, x * 2], -1)
x = torch.cat([x[..., 1:] * 3, x], -1)
x = torch.cat([x[..., :-1] + x[..., 1:], x * 2], -1)
x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
x = torch.cat([x.relu(), x[:, :, ::2]], 2)
x = torch.cat([torch.ones_like(x[..., :1]), x, x[..., :2]], -1)
x = torch.cat([x[..., 2:], x[..., :2]], -1)
x = torch.cat([x[..., :2], x[..., 1:], x[..., :1]], -1).cumsum(1)
x = torch.cat([x, x.mean(-1, keepdim=True)], -1)
x = torch.stack([x, -x], -1).flatten(-2)
x = x.repeat(*[1] * (x.dim() - 1), 2)
x = torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, -x)
x = x + x.flip(-1)
x = x - x.roll(1, -1)
x = x * x.roll((1, -1), (1, 2))
x = x + x.transpose(2, -1) if x.shape[2] == x.shape[-1] else x
x = F.pad(x, [1, 2]).sigmoid()
x = (F.pad(x, [1, 0]) + 1)[..., :-1] + x
x = torch.cat([(F.pad(x, [1, 0]) + 1)[..., :-1], x], 1)
x = F.pad(x, [2, 1], value=0.5) * 2 - 1
x = F.pad(F.pad(x, [1, 0]).exp(), [0, 1])
x = F.pad(x, [0, 2])[..., 1:].cos() + F.pad(x, [1, 0])
x = torch.cat([x[..., :1], x], -1)[..., :-1] - x
x = F.pad(x, [-1, 1]) + x
x = x.clone(); x[..., 1:] += x[..., :-1].clone()
x = x.clone(); x[:, :, :2] = x[:, :, -2:] * 2 if x.shape[2] > 3 else 1
x = x.clone(); x[..., 1:2] = x.amax(-1, keepdim=True) if x.shape[-1] > 1 else 0
x = x.slice_scatter(x[..., ::2] * 2, -1, 0, x.shape[-1], 2)
x = x.clone(); x[..., 1::2] = 0
y = x.new_ones(*x.shape[:-1], x.shape[-1] + 2); y[..., 1:-1] = x; x = y
""".strip().splitlines()

GLOBAL = """
x = x.cumsum(-1)
x = x.cumsum(2).tanh()
x = x.sort(-1).values
x = x.topk(min(3, x.shape[-1]), -1).values
x = torch.fft.rfft(x, dim=-1).abs()
x = torch.fft.fft(x, dim=2).real * 0.1
t = x.flatten(2).mT; x = F.scaled_dot_product_attention(t, t, t).mT.reshape(x.shape)
t = x.flatten(2); a = (t.mT @ t).softmax(-1); x = (t @ a).view_as(x) + x
x = torch.einsum('nc...,dc->nd...', x, torch.ones(2, x.shape[1], dtype=x.dtype) / 2)
x = torch.einsum('nc...i,nd...i->ncd', x, x).unsqueeze(-1).expand(-1, -1, -1, 2)[..., 0]
x = x @ torch.ones(x.shape[-1], 3, dtype=x.dtype).tril()
x = x.logcumsumexp(-1)
x = x.flatten(2).unflatten(2, x.shape[2:])
x = x.reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2).reshape(x.shape)
x = x.median(-1, keepdim=True).values + x
x = torch.cummax(x, -1).values
x = x.norm(dim=(2, -1) if x.dim() > 3 else 2, keepdim=True) * x
x = x.flatten(1).roll(1, 1).view_as(x)
x = torch.diff(x, dim=-1) if x.shape[-1] > 1 else x
x = x.amin(tuple(range(1, x.dim())), keepdim=True) + x
""".strip().splitlines()

CODES = [*POINT, *CHANNEL, *SPATIAL, *SPLICE, *GLOBAL]

# Change the number of spatial axes.
RESHAPE = {
    1: ["x = x.unsqueeze(2)", "x = x.unsqueeze(-1).expand(-1, -1, -1, 2)"],
    2: [
        "x = x.mean(2)",
        "x = x.amax(-1)",
        "x = x.flatten(2)",
        "x = x.unsqueeze(2)",
        "x = x[:, :, 0]",
    ],
    3: ["x = x.flatten(1, 2)", "x = x.mean(-1)", "x = x[:, :, -1]"],
}
