"""Pictures made by formula: a class is a family of formulas and one row of uniform numbers.

A family draws a field (n, S, S) of grey values, 0 to 1, on a `Canvas`. What it takes by `number`, `size`, `choice`
or `vector` belongs to the class and is the same in each of its pictures, but for a small jitter; what it takes by
`uniform`, `normal` or `noise` is new in every picture. Lengths are pixels: a texture has the same grain in pictures
of every size.

The families, by the studies that found them to transfer: iterated function systems (Kataoka et al., ACCV 2020;
Anderson and Farrell, WACV 2022), radial contours and visual atoms (Kataoka et al., CVPR 2022; Takashima et al.,
CVPR 2023), dead leaves and spectra of noise (Baradad et al., NeurIPS 2021), image programs (Baradad et al.,
NeurIPS 2022). The other ones (waves, Turing patterns, cells, strokes, tiles, parts, Julia sets) are textbook figures.
"""

import math

import torch
import torch.nn.functional as F

NUMBERS = 160       # uniform numbers of a class; a family leaves unused what it does not need
JITTER = 0.02       # by so much the numbers of a class vary from picture to picture
TAU = 2 * math.pi


class Canvas:
    """n empty pictures of S by S pixels, their classes' numbers (n, NUMBERS) and their coordinates x, y."""

    def __init__(self, numbers: torch.Tensor, side: int, generator: torch.Generator) -> None:
        self.count, self.side, self.generator, self.taken = len(numbers), side, generator, 0
        self.exact = numbers
        self.numbers = (numbers + self.uniform(-JITTER, JITTER, NUMBERS)).clamp(0, 1)
        axis = torch.arange(side, device=numbers.device) - (side - 1) / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        zoom, turn = 2 ** self.uniform(-0.45, 0.45), self.uniform(-0.4, 0.4)
        mirror = self.uniform(-1, 1).sign()
        x, y = x * mirror * zoom, y * zoom
        bend = self.number(-6, 6).clamp(min=0)          # half of the classes are bent
        self.x = x * turn.cos() - y * turn.sin() + bend * self.noise(24)
        self.y = x * turn.sin() + y * turn.cos() + bend * self.noise(24)

    def number(self, low: float, high: float) -> torch.Tensor:
        """Next number of the class, (n, 1, 1)."""
        self.taken += 1
        return low + (high - low) * self.numbers[:, self.taken - 1, None, None]

    def size(self, low: float, high: float) -> torch.Tensor:
        """Next number of the class, spread evenly on a logarithmic scale, (n, 1, 1)."""
        return low * (high / low) ** self.number(0, 1)

    def choice(self, count: int) -> torch.Tensor:
        """Next number of the class as one of 0 .. count - 1, without jitter, (n, 1, 1)."""
        self.taken += 1
        return (self.exact[:, self.taken - 1, None, None] * count).long().clamp(max=count - 1)

    def vector(self, *shape: int) -> torch.Tensor:
        """Next numbers of the class, -1 to 1, (n, *shape)."""
        length = math.prod(shape)
        self.taken += length
        return 2 * self.numbers[:, self.taken - length:self.taken].reshape(self.count, *shape) - 1

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Fresh numbers, (n, *shape) or (n, 1, 1)."""
        fresh = torch.rand(self.count, *(shape or (1, 1)), generator=self.generator, device=self.generator.device)
        return low + (high - low) * fresh

    def normal(self, *shape: int) -> torch.Tensor:
        """Fresh numbers of mean 0 and deviation 1, (n, *shape)."""
        return torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device)

    def noise(self, spacing: int) -> torch.Tensor:
        """Fresh smooth noise of about unit spread with a node each `spacing` pixels, (n, S, S)."""
        nodes = -(-self.side // spacing) + 4
        grid = F.interpolate(self.normal(1, nodes, nodes), scale_factor=spacing, mode="bicubic", align_corners=False)
        return 1.4 * grid[:, 0, spacing:spacing + self.side, spacing:spacing + self.side]

    def shifted(self, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates with a fresh origin up to `reach` pixels away."""
        return self.x + self.uniform(-reach, reach), self.y + self.uniform(-reach, reach)

    def turned(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates with the class' own direction and a fresh origin."""
        (x, y), angle = self.shifted(100), self.number(0, math.pi)
        return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def stretched(field: torch.Tensor) -> torch.Tensor:
    """Each picture of (n, S, S) from its lowest to its highest value."""
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return (field - low) / (high - low + 1e-6)


def squashed(field: torch.Tensor) -> torch.Tensor:
    """Values of about unit spread to 0 .. 1."""
    field = field - field.mean((1, 2), keepdim=True)
    return torch.sigmoid(1.7 * field / (field.std((1, 2), keepdim=True) + 1e-6))


def pick(index: torch.Tensor, *fields: torch.Tensor) -> torch.Tensor:
    """fields[index], picture by picture."""
    chosen = fields[-1]
    for number, field in enumerate(fields[:-1]):
        chosen = torch.where(index == number, field, chosen)
    return chosen


def waves(c: Canvas) -> torch.Tensor:
    """One to three gratings, added or multiplied, round or nearly square."""
    total, product, count = torch.zeros(()), torch.ones(()), c.choice(3)
    for index in range(3):
        u, v = c.turned()
        wave = torch.sin(TAU * u / c.size(5, 40) + c.number(0, 2) * torch.sin(TAU * v / c.size(8, 60)))
        wave = torch.tanh(wave * c.size(1, 6))
        used = index <= count
        total, product = total + wave * used, product * torch.where(used, wave, torch.ones(()))
    return stretched(pick(c.choice(2), total, product))


def spectrum(c: Canvas) -> torch.Tensor:
    """Noise with a power law and perhaps a preferred direction and length, plain, folded, cut or in bands."""
    # The spectrum of white noise, times a gain that falls with the frequency, and perhaps a band that stands out.
    frequency = torch.fft.fftfreq(c.side), torch.fft.rfftfreq(c.side)
    fy, fx = torch.meshgrid(*(f.to(c.numbers.device) for f in frequency), indexing="ij")
    angle, stretch = c.number(0, math.pi), c.size(1, 6)
    u, v = fx * angle.cos() + fy * angle.sin(), fy * angle.cos() - fx * angle.sin()
    radius = (u**2 * stretch + v**2 / stretch).sqrt() + 0.7 / c.side
    gain = radius ** -c.number(0.4, 2.6)
    band = torch.exp(-((radius * c.size(5, 30)).log() / 0.35) ** 2)
    gain = pick(c.choice(2), gain, gain * (band + 0.02))
    field = torch.fft.irfft2(torch.fft.rfft2(c.normal(c.side, c.side)) * gain, s=(c.side, c.side))
    field = field / (field.std((1, 2), keepdim=True) + 1e-6)
    # What is made of the field, by the class.
    shape = c.choice(4)
    folded, cut = -field.abs(), torch.tanh(8 * (field - c.number(-1, 1)))
    bands = torch.sin(field * c.number(2, 6))
    return squashed(pick(shape, field, folded, cut, bands))


def turing(c: Canvas) -> torch.Tensor:
    """Spots, worms and labyrinths: an activator and a wider inhibitor, iterated to saturation (Turing 1952)."""
    frequency = torch.fft.fftfreq(c.side), torch.fft.rfftfreq(c.side)
    fy, fx = torch.meshgrid(*(f.to(c.numbers.device) for f in frequency), indexing="ij")
    angle, stretch, length, tilt = c.number(0, math.pi), c.size(1, 2.5), c.size(4, 14), c.number(-0.35, 0.35)
    u, v = fx * angle.cos() + fy * angle.sin(), fy * angle.cos() - fx * angle.sin()
    # In the frequencies both blurs are Gaussians, the inhibitor's a narrower one: their difference lets a ring of
    # wavelengths grow, and tanh stops the growth.
    radius = (u**2 * stretch + v**2 / stretch) * (length * 2) ** 2
    kernel = 2.2 * (torch.exp(-radius) - torch.exp(-radius * c.number(1.8, 3.5)))
    field, gain = c.normal(c.side, c.side), c.size(2, 5)
    for _ in range(10):
        field = torch.fft.irfft2(torch.fft.rfft2(field) * kernel, s=(c.side, c.side))
        field = torch.tanh(gain * (field / (field.std((1, 2), keepdim=True) + 1e-6) + tilt))
    return 0.5 + 0.5 * field


def cells(c: Canvas) -> torch.Tensor:
    """Cells round scattered points (Worley 1996): distance to the nearest, the walls between two, grey by cell."""
    u, v = c.turned()
    pitch, aspect, scatter = c.size(7, 36), c.size(0.5, 2), c.number(0.2, 1)
    u, v = u / pitch * aspect, v / pitch / aspect
    # Each cell of the lattice takes the place of its point (a, b) and its grey g from a table by a hash of (i, j); the
    # point nearest to a pixel lies in its own cell or in one of the eight around it.
    table = c.uniform(0, 1, 3, 997)
    first, second = torch.full_like(u, 9.0), torch.full_like(u, 9.0)
    grey, edge = torch.zeros_like(u), c.choice(2)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            i, j = u.floor() + column, v.floor() + row
            place = ((i * 57 + j * 131) % 997).long().flatten(1)
            a, b, g = (table[:, k].gather(1, place).view_as(u) for k in range(3))
            du, dv = i + 0.5 + scatter * (a - 0.5) - u, j + 0.5 + scatter * (b - 0.5) - v
            distance = pick(edge, (du**2 + dv**2).sqrt(), du.abs() + dv.abs())
            nearer = distance < first
            second = torch.where(nearer, first, torch.minimum(second, distance))
            first, grey = torch.where(nearer, distance, first), torch.where(nearer, g, grey)
    wall = ((second - first) * c.size(1.5, 8)).clamp(max=1)
    mode = c.choice(4)
    return pick(mode, stretched(first), wall, grey, grey * wall)


def contours(c: Canvas) -> torch.Tensor:
    """Nested lines along closed curves whose radius is a sum of waves; one large figure, or one with small copies."""
    amplitudes, phases = 0.35 * c.vector(6), math.pi * c.vector(6)
    orders = (2 + 9 * (c.vector(6) + 1)).floor()
    rings, width, filled = c.size(1, 9), c.number(0.1, 0.8), c.choice(2)
    copies, radius = c.choice(3), c.size(14, 34)
    field = torch.zeros_like(c.x)
    for index in range(3):
        shrink = (1.0, 0.5, 0.35)[index]
        x, y = c.shifted(26 if index else 10)
        angle = torch.atan2(y, x)[..., None]
        wave = amplitudes[:, None, None] * torch.sin(orders[:, None, None] * angle + phases[:, None, None])
        curve = 1 + wave.sum(-1) / 2
        depth = (x**2 + y**2).sqrt() / (radius * shrink * curve.clamp(min=0.2))
        line = torch.sigmoid(10 * (torch.cos(TAU * rings * depth) - 1 + 2 * width))
        inside = torch.sigmoid(12 * (1 - depth))
        figure = inside * pick(filled, line, 1 - 0.6 * depth.clamp(max=1) * line)
        field = torch.where(index <= copies, torch.maximum(field, figure), field)
    return field


def leaves(c: Canvas) -> torch.Tensor:
    """Dead leaves: opaque figures of many sizes cover each other."""
    smallest, slope = c.size(3, 9), c.number(0.6, 2.5)
    aspect, disc, spread = c.size(1, 5), c.number(-1, 2).clamp(0, 1), c.number(0.05, math.pi / 2)
    direction, side_light, dome = c.number(0, math.pi), c.number(-0.5, 0.5), c.number(-0.8, 0.4).clamp(max=0)
    zoom = 2 ** c.uniform(-0.4, 0.4)
    field, count = c.uniform(0, 1).expand_as(c.x), 26
    radii = smallest[..., None] * (1 - c.uniform(0, 0.98, 1, 1, count)) ** (-1 / slope[..., None])
    radii = radii.sort(-1, descending=True).values.clamp(max=40) * zoom[..., None]       # small ones on top
    reach = c.side / 2 + 6
    for index in range(count):
        x, y = c.x + c.uniform(-reach, reach), c.y + c.uniform(-reach, reach)
        angle = direction + spread * c.uniform(-1, 1)
        u = (x * angle.cos() + y * angle.sin()) / (radii[..., index] * aspect.sqrt())
        v = (y * angle.cos() - x * angle.sin()) / (radii[..., index] / aspect.sqrt())
        depth = torch.lerp(torch.maximum(u.abs(), v.abs()), (u * u + v * v).sqrt(), disc)
        tone = c.uniform(0, 1) + side_light * u + dome * depth * depth
        field = torch.where(depth < 1, tone, field)
    return field.clamp(0, 1)


def strokes(c: Canvas) -> torch.Tensor:
    """Straight or curved lines of one kind: fibres, hairs, scratches, cracks."""
    width, length, curl = c.size(0.7, 4), c.size(6, 70), c.number(-0.05, 0.05)
    direction, spread = c.number(0, math.pi), c.number(0.02, math.pi / 2)
    wobble, profile, dense = c.number(0, 3), c.choice(2), c.number(5, 30)
    field, reach = torch.zeros_like(c.x), c.side / 2 + 8
    for index in range(22):
        x, y = c.x + c.uniform(-reach, reach), c.y + c.uniform(-reach, reach)
        angle = direction + spread * c.uniform(-1, 1)
        u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        v = v + curl * u**2 / 4 + wobble * torch.sin(u / 5 + c.uniform(0, TAU))
        beyond = (u.abs() - length / 2).clamp(min=0)
        depth = (v**2 + beyond**2).sqrt() / width
        line = pick(profile, torch.exp(-depth**2), torch.sigmoid(4 * (1 - depth)))
        field = torch.where(index < dense, torch.maximum(field, line * c.uniform(0.3, 1)), field)
    return field


def fractal(c: Canvas) -> torch.Tensor:
    """Attractor of 2 to 5 contracting affine maps by the chaos game, brightness = log of the density."""
    count, most = 2 + c.choice(4)[:, 0, 0], 5
    turns, skews = math.pi * c.vector(most), math.pi * c.vector(most)
    large, small = 0.55 + 0.33 * c.vector(most), 0.45 + 0.4 * c.vector(most)
    shift = c.vector(most, 2)
    # 1. The maps z -> Mz + t, M = turn * diag(singular values below 1) * turn.
    contract = torch.diag_embed(torch.stack([large, small.sign() * small.abs().clamp(0.1)], -1))
    matrices = rotations(turns) @ contract @ rotations(skews)
    # 2. Each is drawn by the area that it keeps; `bounds` cut 0..1 into the shares of the first `count` maps.
    likely = (large * small).abs() + 0.08
    likely = torch.where(torch.arange(most, device=likely.device) < count[:, None], likely, torch.zeros(()))
    bounds = likely.cumsum(1)[:, :-1] / likely.sum(1, keepdim=True)
    maps = torch.cat([matrices.flatten(2), shift], -1)                     # (n, maps, a b c d e f)
    # 3. The chaos game: 700 points wander, the first 10 steps until they lie on the attractor.
    x, y = c.uniform(-1, 1, 2, 700).unbind(1)
    steps = []
    for step in range(30):
        chosen = torch.searchsorted(bounds, c.uniform(0, 1, 700))
        m = maps.gather(1, chosen[..., None].expand(-1, -1, 6)).unbind(-1)
        x, y = m[0] * x + m[1] * y + m[4], m[2] * x + m[3] * y + m[5]
        if step >= 10:
            steps.append(torch.stack([x, y], -1))
    # 4. All places, brought to the middle of the picture, turned a little, counted by pixel.
    points = torch.cat(steps, 1)
    middle, spread = points.mean(1, keepdim=True), points.std(1, keepdim=True)
    points = (points - middle) / (4 * spread + 1e-6)
    turn = c.uniform(-0.4, 0.4)[:, :, 0]
    x, y = points.unbind(-1)
    x, y = x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()
    zoom = c.side * c.uniform(0.6, 1.1)[:, :, 0]
    x = (x * zoom + c.side * c.uniform(0.4, 0.6)[:, :, 0]).floor()
    y = (y * zoom + c.side * c.uniform(0.4, 0.6)[:, :, 0]).floor()
    valid = (x >= 0) & (x < c.side) & (y >= 0) & (y < c.side)
    place = torch.where(valid, y * c.side + x, torch.zeros(())).long()
    density = torch.zeros(c.count, c.side**2, device=x.device).scatter_add_(1, place, valid.float())
    density = F.avg_pool2d(density.view(-1, 1, c.side, c.side), 3, 1, 1)[:, 0]
    return stretched(torch.log1p(density * 4))


def rotations(angles: torch.Tensor) -> torch.Tensor:
    """Angles (n, m) -> matrices (n, m, 2, 2)."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def program(c: Canvas) -> torch.Tensor:
    """A small random network of sines over the coordinates, and a little fresh noise."""
    x, y = c.shifted(40)
    period = c.size(8, 40)
    inputs = torch.stack([x / period, y / period, (x**2 + y**2).sqrt() / period, c.noise(16) * c.number(0, 0.6)], 1)
    h = torch.sin(torch.einsum("nij,njhw->nihw", 2.5 * c.vector(6, 4), inputs) + math.pi * c.vector(6)[..., None, None])
    h = torch.sin(torch.einsum("nij,njhw->nihw", 2.5 * c.vector(6, 6), h) + math.pi * c.vector(6)[..., None, None])
    h = torch.einsum("ni,nihw->nhw", c.vector(6), h)
    return squashed(pick(c.choice(2), h, torch.tanh(6 * h)))


def julia(c: Canvas) -> torch.Tensor:
    """Escape times of z -> z² + k."""
    zoom = c.side * c.uniform(0.22, 0.5)
    x, y = c.shifted(12)
    x, y = x / zoom, y / zoom
    angle, radius = c.number(0, TAU), c.number(0.55, 0.95)
    a, b = radius * angle.cos(), radius * angle.sin()
    escaped = torch.zeros_like(x)
    for _ in range(18):
        x, y = (x * x - y * y + a).clamp(-8, 8), (2 * x * y + b).clamp(-8, 8)
        escaped = escaped + torch.sigmoid(2 * (x * x + y * y - 4))
    return pick(c.choice(2), escaped / 18, 0.5 + 0.5 * torch.sin(escaped * c.number(0.7, 2.5)))


def tiles(c: Canvas) -> torch.Tensor:
    """One random motif of 6 by 6 grey values, repeated on a lattice that may be slanted or staggered."""
    u, v = c.turned()
    pitch, aspect, slant = c.size(8, 30), c.size(0.6, 1.6), c.number(-0.5, 0.5) * (c.choice(2) == 0)
    u, v = u / pitch * aspect, v / pitch / aspect
    u = u + slant * v + 0.5 * (c.choice(3) == 0) * (v.floor() % 2)
    motif = c.vector(1, 6, 6)
    motif = pick(c.choice(2)[..., None], motif, motif.sign())
    motif = F.pad(motif, (1, 1, 1, 1), mode="circular")
    grid = torch.stack([u % 1, v % 1], -1) * 1.5 - 0.75
    field = F.grid_sample(motif, grid, align_corners=False)[:, 0]
    return stretched(field + c.number(0, 0.5) * c.noise(6))


def parts(c: Canvas) -> torch.Tensor:
    """Height of a part: a rounded body with teeth and holes round its axis or along it, cut and raised."""
    x, y = c.shifted(14)
    teeth, depth = 3 + c.choice(14), c.number(0, 0.25)
    radius, straight = c.size(16, 34), c.choice(2)
    angle, distance = torch.atan2(y, x), (x**2 + y**2).sqrt()
    along = pick(straight, angle * teeth, TAU * x / c.size(6, 24))
    tooth = torch.tanh(c.size(0.7, 5) * torch.sin(along))
    rim = 1 + depth * tooth
    bar = torch.maximum(y.abs() - radius * c.number(0.3, 0.8) * rim, x.abs() - 1.4 * radius)
    body = pick(straight, distance - radius * rim, bar)
    height = torch.sigmoid(-body / c.size(0.8, 8))
    for _ in range(2):
        count, reach, bore = 1 + c.choice(8), c.number(0, 0.8) * radius, c.size(2, 9)
        sector = TAU / count
        folded = torch.remainder(angle + c.number(0, TAU), sector) - sector / 2
        u = pick(straight, distance * folded.cos() - reach, torch.remainder(x, 3 * bore) - 1.5 * bore)
        v = pick(straight, distance * folded.sin(), y - reach / 2)
        hole = torch.sigmoid(-((u**2 + v**2).sqrt() - bore) / c.size(0.5, 3))
        height = height * (1 + c.number(-1.6, 0.6).clamp(-1, 0.6) * hole)
    return stretched(height)


FAMILIES = (waves, spectrum, turing, cells, contours, leaves, strokes, fractal, program, julia, tiles, parts)
