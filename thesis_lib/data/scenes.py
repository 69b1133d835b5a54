"""The three drawn scenes behind `synthetic`: a height field and a colour per pixel, then light.

A scene returns `Surface(height, colour, gloss)` on an (n, n) grid; `photograph` lights it and makes the picture.
Lengths are fractions of the picture's side, so a scene looks alike at every size; colours are linear, 0 to 1.

Pixels must not depend on the machine. Hence only + - * / sqrt, floor and comparisons in float64, which IEEE 754
rounds alike everywhere, one NumPy call per operation (a compiler may fuse a*b+c inside one), sums only by
cumsum of int64, and random numbers from raw PCG64 bits, which NumPy keeps stable (NEP 19). No sin, exp, pow,
np.interp, np.mean, Generator.uniform or .normal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

Point = Sequence[float] | np.ndarray        # (row, column), in 0..1 over the picture or the part


class Random:
    """Uniform numbers; every picture has its own `Random(*key)` of non-negative integers."""

    def __init__(self, *key: int) -> None:
        self.bits = np.random.PCG64(list(key))

    @overload
    def __call__(self, low: float = 0.0, high: float = 1.0, shape: None = None) -> float: ...

    @overload
    def __call__(self, low: float, high: float, shape: int | tuple[int, ...]) -> np.ndarray: ...

    def __call__(self, low: float = 0.0, high: float = 1.0,
                 shape: int | tuple[int, ...] | None = None) -> float | np.ndarray:
        """One number from low up to high, or an array of them."""
        # The upper 53 of 64 bits are the digits of a float64 in 0..1.
        return low + (high - low) * ((self.bits.random_raw(shape) >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """One of 0 .. count - 1."""
        return int(self(0, count))

    def turn(self, reach: float = 1.0) -> tuple[float, float]:
        """(cos, sin) of an angle within ±2·atan(reach): reach 1 is ±90 degrees."""
        t = self(-reach, reach)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def noise(self, y: np.ndarray, x: np.ndarray, rows: int, columns: int | None = None) -> np.ndarray:
        """Smooth noise in -1..1 at y, x in 0..1 (clamped), with `rows` by `columns` bumps."""
        columns = columns or rows
        return smooth(self(-1, 1, (rows + 1, columns + 1)), y * rows, x * columns)


class Surface(NamedTuple):
    """What a scene draws: one height and colour per pixel, and how it throws light back."""

    height: np.ndarray          # (n, n), fractions of the side
    colour: np.ndarray          # (3, n, n), linear
    gloss: np.ndarray | float   # (n, n) or one number, strength of the highlight
    sharpness: int              # the highlight's exponent is 2**sharpness
    wrap: float                 # light that creeps round an edge: 0 metal, 0.3 translucent plastic


def smooth(grid: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Values of `grid` at fractional row v and column u, smoothstep between the nodes."""
    v, u = np.clip(v, 0, grid.shape[0] - 1), np.clip(u, 0, grid.shape[1] - 1)
    # Nodes (i, j) before a place, and its shares s and t of the way to the next ones.
    i, j = np.minimum(v.astype(int), grid.shape[0] - 2), np.minimum(u.astype(int), grid.shape[1] - 2)
    s, t = ease(v - i), ease(u - j)
    if v.shape[1:] == (1,) and u.shape[:1] == (1,):     # axes: all rows first, then all columns, is much faster
        rows = grid[i[:, 0]]
        rows = rows + (grid[i[:, 0] + 1] - rows) * s
        left = rows[:, j[0]]
        return left + (rows[:, j[0] + 1] - left) * t
    top = grid[i, j] + (grid[i, j + 1] - grid[i, j]) * t
    return top + (grid[i + 1, j] + (grid[i + 1, j + 1] - grid[i + 1, j]) * t - top) * s


def ease(t: np.ndarray) -> np.ndarray:
    """Smoothstep, 0 to 1."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def axes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres: y (n, 1) and x (1, n) in 0..1."""
    centre = (np.arange(n) + 0.5) / n
    return centre[:, None], centre[None, :]


def halve(a: np.ndarray) -> np.ndarray:
    """Mean of 2x2 pixels over the last two axes."""
    return (a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2]) * 0.25


def blur(a: np.ndarray, radius: int) -> np.ndarray:
    """Two box filters of 2·radius+1 pixels along both axes, exact (int64 sums), edges repeated."""
    total = np.rint(a * 2.0**24).astype(np.int64)
    for axis in (0, 1, 0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(total, pad, mode="edge"), axis=axis).swapaxes(0, axis)
        total = ((sums[2 * radius + 1:] - sums[:-2 * radius - 1]) // (2 * radius + 1)).swapaxes(0, axis)
    return total * 2.0**-24


def blob(rand: Random, y: np.ndarray, x: np.ndarray, where: Point, radius: float, rough: float = 0.5,
         slim: float = 1.0, turn: tuple[float, float] = (1.0, 0.0)) -> np.ndarray:
    """1 in the middle, 0 on an irregular outline `radius` away, negative outside; `slim` < 1 is an ellipse."""
    dy, dx = y - where[0], x - where[1]
    ragged = rand.noise(0.5 + dy / (4 * radius), 0.5 + dx / (4 * radius), 9)
    along, across = dx * turn[0] + dy * turn[1], (dy * turn[0] - dx * turn[1]) / slim
    return 1 - (along * along + across * across) / (radius * radius) + rough * ragged


def curve(rand: Random, where: Point, length: float, bend: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` points (rows, columns) of a bent line of about `length` through the neighbourhood of `where`."""
    (cos, sin), bow = rand.turn(), rand(-bend, bend)
    t = (np.arange(count) / (count - 1) - 0.5) * length
    off = bow * (t * t / length - length / 8)
    return where[0] + t * sin + off * cos, where[1] + t * cos - off * sin


def mix(colour: np.ndarray, other: Sequence[float] | np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(3, n, n) blended towards another colour (3 numbers or an array) by weight (n, n)."""
    other = np.asarray(other, dtype=float)
    return colour + ((other if other.ndim == 3 else other[:, None, None]) - colour) * weight


# ---------------------------------------------------------------- light and camera

def photograph(rand: Random, surface: Surface, size: int) -> np.ndarray:
    """Light from one side, shadows, lens and sensor: (size, size, 3) uint8."""
    height, n = surface.height, len(surface.height)
    y, x = axes(n)
    cos, sin = rand.turn(0.25)
    slope = rand(0.75, 1.0)                                     # height of the lamp over its distance
    lamp = (0.5 - 2.2 * sin - 0.9 * cos, 0.5 - 2.2 * cos + 0.9 * sin, 2.4 * slope)      # y, x, z
    # Diffuse light: the surface's normal (gx, gy, -1) * norm against the way (lx, ly, lz) to the lamp.
    edge = np.pad(height, 1, mode="edge")
    gy, gx = (edge[2:, 1:-1] - edge[:-2, 1:-1]) * (n / 2), (edge[1:-1, 2:] - edge[1:-1, :-2]) * (n / 2)
    norm = 1 / np.sqrt(1 + gx * gx + gy * gy)
    ly, lx, lz = lamp[0] - y, lamp[1] - x, lamp[2]
    near = 1 / np.sqrt(lx * lx + ly * ly + lz * lz)
    facing = (lz - gx * lx - gy * ly) * norm * near
    lit = np.maximum(facing + surface.wrap, 0) / (1 + surface.wrap) * (1 - shadow(height, lamp))
    # Highlight: the normal against the direction half way between lamp and camera, to the power 2**sharpness.
    hz = lz + 1 / near
    shine = (hz - gx * lx - gy * ly) * norm / np.sqrt(lx * lx + ly * ly + hz * hz)
    shine = np.maximum(shine, 0)
    for _ in range(surface.sharpness):
        shine = shine * shine
    # A place that lies lower than what is around it sees less of the sky.
    coarse = halve(halve(height))
    around = smooth(blur(coarse, max(1, n // 160)), y * (n / 4) - 0.5, x * (n / 4) - 0.5)
    open_sky = np.clip(1 - 22 * np.maximum(around - height, 0), 0.15, 1)
    ambient, exposure = rand(0.24, 0.36), rand(0.84, 1.16)
    lens = exposure * (1 - rand(0.1, 0.3) * ((x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5)))
    # Camera: everything together, made smaller by means of 2 x 2, then the sensor's noise.
    light = (ambient + 0.85 * lit) * open_sky * lens
    shine = shine * surface.gloss * lens
    image = surface.colour * light + shine
    while image.shape[-1] > size:
        image = halve(image)
    grain = rand(-1, 1, (size, size)) + rand(-1, 1, (size, size))
    image = 255 * np.sqrt(np.clip(image, 0, 1)) + 2.2 * grain   # sqrt is the display's gamma
    return np.moveaxis(np.clip(np.rint(image), 0, 255), 0, -1).astype(np.uint8)


def shadow(height: np.ndarray, lamp: tuple[float, float, float]) -> np.ndarray:
    """(n, n) 0 lit to 1 shadowed, by walking from every pixel towards the lamp (y, x, z)."""
    n = len(height)
    dy, dx = lamp[0] - 0.5, lamp[1] - 0.5
    flat = float(np.sqrt(dy * dy + dx * dx))
    dy, dx, rise = dy / flat, dx / flat, lamp[2] / flat
    reach = max(abs(round(dy * n * 0.06)), abs(round(dx * n * 0.06))) + 1
    padded, blocked = np.pad(height, reach, mode="edge"), np.zeros_like(height)
    for distance in (0.004, 0.008, 0.013, 0.02, 0.03, 0.044, 0.06):
        sy, sx = reach + round(dy * n * distance), reach + round(dx * n * distance)
        over = padded[sy:sy + n, sx:sx + n] - height - distance * rise      # above the ray to the lamp
        blocked = np.maximum(blocked, over / (0.003 + 0.12 * distance))
    return 0.85 * ease(blocked)


# ---------------------------------------------------------------- granulate

@dataclass
class Pellet:
    """One rounded body; also a crumb of dust or a bead of a fibre. Outline: lobes and cuts of an ellipse."""

    y: float
    x: float
    z: float
    long: float                         # half axes along, across and up
    wide: float
    high: float
    colour: tuple[float, ...]           # linear red, green, blue
    turn: tuple[float, float] = (1.0, 0.0)
    power: int = 1                      # 1 lentil, 3 end-cut cylinder (see `drop`)
    tilt: tuple[float, float] = (0.0, 0.0)
    lobes: tuple[tuple[float, float], ...] = ((0.0, 0.0),)      # further bodies melted into it, in half axes
    cut: tuple[float, float, float] | None = None               # (u, v, d): broken away where u·U + v·V > d
    gloss: float = 0.3
    ride: bool = False                  # lies on whatever is below instead of at z


def drop(height: np.ndarray, owner: np.ndarray, number: int, p: Pellet) -> None:
    """Draw a pellet into height and owner (which pellet is seen), both (n, n), where it is the highest."""
    n, reach = len(height), float(np.sqrt(p.long * p.long + p.wide * p.wide)) * (1 if len(p.lobes) == 1 else 2.5)
    # Rows and columns that it can reach; coordinates u, v in half axes along and across it.
    r0, r1 = (min(n, max(0, int(edge * n))) for edge in (p.y - reach, p.y + reach + 1 / n))
    c0, c1 = (min(n, max(0, int(edge * n))) for edge in (p.x - reach, p.x + reach + 1 / n))
    if r0 == r1 or c0 == c1:
        return
    dy = ((np.arange(r0, r1) + 0.5) / n - p.y)[:, None]
    dx = ((np.arange(c0, c1) + 0.5) / n - p.x)[None, :]
    u, v = (dx * p.turn[0] + dy * p.turn[1]) / p.long, (dy * p.turn[0] - dx * p.turn[1]) / p.wide
    # body is 1 in the middle of a lobe and 0 on the outline; where lobes meet, they swell together.
    melted = np.zeros(())
    for lobe_u, lobe_v in p.lobes:
        uu, vv = (u - lobe_u) * (u - lobe_u), (v - lobe_v) * (v - lobe_v)
        melted = melted + 1 / ((uu * uu * uu if p.power == 3 else uu) + vv + 1e-9)
    body = 1 - 1 / melted
    if p.cut:
        body = np.minimum(body, (p.cut[2] - u * p.cut[0] - v * p.cut[1]) * 4)
    base = p.z
    if p.ride:
        base = height[min(n - 1, max(0, int(p.y * n))), min(n - 1, max(0, int(p.x * n)))]
    top = base + p.high * np.sqrt(np.maximum(body, 0)) + p.tilt[0] * u + p.tilt[1] * v
    seen = (body > 0) & (top > height[r0:r1, c0:c1])
    height[r0:r1, c0:c1][seen] = top[seen]
    owner[r0:r1, c0:c1][seen] = number


def granulate(rand: Random, n: int, defect: str | None, odd: Random) -> Surface:
    """Plastic pellets poured on a tray, seen from above."""
    y, x = axes(n)
    warm, bright = rand(-1, 1), rand(0.46, 0.6)
    base = (bright * (1.06 + 0.03 * warm), bright * (1 + 0.01 * warm), bright * (0.86 - 0.05 * warm))
    pellets = []
    for layer in range(3):
        pitch, (cos, sin), slip = rand(0.078, 0.086), rand.turn(), rand(0, 1, 2)
        lattice, count = np.arange(-10, 11), 21
        b = (lattice[:, None] + slip[0] + rand(-0.25, 0.25, (count, count))) * (0.87 * pitch)
        a = (lattice + slip[1] + 0.5 * (lattice % 2)[:, None] + rand(-0.25, 0.25, (count, count))) * pitch
        cy, cx = 0.5 + a * sin + b * cos, 0.5 + a * cos - b * sin
        here = (np.abs(cy - 0.5) < 0.55) & (np.abs(cx - 0.5) < 0.55)
        here &= rand(0, 1, here.shape) < (1.0, 1.0, 0.7)[layer]         # the top layer has gaps
        for y0, x0 in zip(cy[here].tolist(), cx[here].tolist(), strict=True):
            shade, long, slim, rise, round_, ty, tx = rand(0, 1, 7).tolist()
            long, tone = 0.036 + 0.014 * long, 0.8 + 0.32 * shade
            wide = long * (0.72 + 0.25 * slim)
            pellets.append(Pellet(y0, x0, 0.022 * layer + 0.016 * rise, long, wide, 0.55 * wide,
                                  tuple(tone * c for c in base), rand.turn(), 1 if round_ < 0.5 else 3,
                                  (0.016 * ty - 0.008, 0.016 * tx - 0.008)))
    if defect:
        spoil_granulate(odd, defect, pellets)
    height, owner = np.full((n, n), -0.03), np.zeros((n, n), dtype=np.int32)
    for number, pellet in enumerate(pellets, start=1):
        drop(height, owner, number, pellet)
    colours = np.array([tuple(0.5 * c for c in base), *(p.colour for p in pellets)]).T
    mottle = 1 + 0.05 * rand.noise(y, x, 90)
    gloss = np.array([0.0, *(p.gloss for p in pellets)])
    return Surface(height, colours[:, owner] * mottle, gloss[owner], 5, 0.25)


def spoil_granulate(odd: Random, defect: str, pellets: list[Pellet]) -> None:
    """Change the list of pellets: one odd one, or things lying on top."""
    upper = [p for p in pellets if p.z > 0.05 and 0.12 < p.y < 0.88 and 0.12 < p.x < 0.88]
    victim = upper[odd.below(len(upper))]
    if defect in ("burnt", "fused"):
        victim.z = 0.062                                    # in full view
    if defect == "burnt":
        char = odd(0.12, 0.6)
        victim.colour = (0.3 * char + 0.03, 0.17 * char + 0.02, 0.05 * char + 0.015)
    elif defect == "broken":
        (cos, sin), where, gap = odd.turn(), odd(-0.25, 0.25), odd(0.4, 0.9)
        pale = odd(1.35, 1.8)
        victim.z, victim.cut, victim.tilt = 0.085, (cos, sin, where), (0.0, 0.0)
        victim.colour = tuple(pale * c for c in victim.colour)
        flat = odd(1.1, 1.4)
        victim.long, victim.wide, victim.high = flat * victim.long, flat * victim.wide, victim.high / flat
        half = Pellet(**vars(victim))
        half.cut, half.tilt = (-cos, -sin, -where), (odd(-0.015, 0.015), odd(-0.015, 0.015))
        along, across = gap * cos * victim.long, gap * sin * victim.wide        # pushed away from the crack
        half.x += along * victim.turn[0] - across * victim.turn[1]
        half.y += along * victim.turn[1] + across * victim.turn[0]
        pellets.append(half)
        for _ in range(12 + odd.below(16)):
            s, reach = odd(0.003, 0.009), 1.6 * victim.long
            pellets.append(Pellet(victim.y + odd(-reach, reach), victim.x + odd(-reach, reach), 0.0, s,
                                  s * odd(0.4, 0.9), s, victim.colour, odd.turn(), 3, ride=True))
    elif defect == "fused":
        grow = odd(1.15, 1.6)
        victim.long, victim.wide, victim.high = (grow * s for s in (victim.long, victim.wide, victim.high))
        victim.power = 1
        victim.lobes = ((0.0, 0.0), (odd(1.0, 1.6), odd(-0.3, 0.3)), (odd(-0.9, 0.2), odd(0.9, 1.5)))
    elif defect == "shaving":
        rows, columns = curve(odd, odd(0.2, 0.8, 2), odd(0.16, 0.34), bend=2.5, count=100)
        thick, grey = odd(0.007, 0.012), odd(0.04, 0.14)
        for row, column in zip(rows, columns, strict=True):
            pellets.append(Pellet(row, column, 0.105, thick, thick, 0.6 * thick, (grey, grey, 1.06 * grey),
                                  gloss=0.9))
    elif defect == "dust":
        spread, dark, (cy, cx) = odd(0.03, 0.07), odd(0.05, 0.16), odd(0.2, 0.8, 2)
        for _ in range(25 + odd.below(50)):
            dy, dx = odd(-1, 1, 3) * odd(0.3, 1, 3), odd(-1, 1, 3)
            s = odd(0.002, 0.0075)
            pellets.append(Pellet(cy + spread * float(dy[0] + dy[1] + dy[2]) / 2,
                                  cx + spread * float(dx[0] + dx[1] + dx[2]) / 2,
                                  0.0, s, s * odd(0.5, 1), 0.5 * s, (dark * 1.2, dark, dark * 0.8), odd.turn(),
                                  ride=True))


# ---------------------------------------------------------------- weave

def weave(rand: Random, n: int, defect: str | None, odd: Random) -> Surface:
    """A 2/2 twill of two yarns on a dark table; warp yarns run down, weft yarns across."""
    y, x = axes(n)
    count, spare = rand(23.0, 25.0), 4
    cos, sin = rand.turn(0.03)
    wander = rand.noise(y, x, 4) * 0.3, rand.noise(y, x, 4) * 0.3
    across = ((x - 0.5) * cos - (y - 0.5) * sin + 0.5) * count + spare + wander[0]      # warp number
    down = ((y - 0.5) * cos + (x - 0.5) * sin + 0.5) * count + spare + wander[1]        # weft number
    yarns = int(count) + 2 * spare + 2
    i, j = np.arange(yarns)[:, None], np.arange(yarns)[None, :]
    over = np.where((i + j + rand.below(4)) % 4 < 2, 1.0, -1.0)                         # warp i over weft j
    width = rand(0.86, 1.04, (2, yarns, 12))                                            # along each yarn
    tone = rand(0.88, 1.1, (2, yarns))
    lean = rand(-0.1, 0.1, (2, yarns))
    tint = rand(-1, 1)
    dyes = np.array([(0.42 + 0.03 * tint, 0.40, 0.34 - 0.03 * tint), (0.10, 0.17 + 0.015 * tint, 0.30)])
    tear, table = np.zeros((n, n)), rand(0.06, 0.12)
    lump = np.zeros((n, n))
    stain = np.zeros((n, n))
    spill = odd(0.6, 1.4) * np.array((0.10, 0.06, 0.03))
    where, at = odd(0.2, 0.8, 2), odd.below(int(0.6 * count)) + int(0.2 * count) + spare
    gap = (0.0, 0.0)
    if defect == "missing_yarn":
        middle, half = odd(0.3, 0.7), odd(0.12, 0.6)
        gap = (spare + count * (middle - half), spare + count * (middle + half))
    elif defect == "double_yarn":
        over[:, at + 1] = over[:, at]
        width[1, at:at + 2] = 1.12
        lean[1, at:at + 2] = 0.12, -0.12
    elif defect == "hole":
        tear = blob(odd, y, x, where, odd(0.022, 0.05), 0.7)
    elif defect == "cut":
        tear = blob(odd, y, x, where, odd(0.07, 0.15), 0.5, odd(0.12, 0.2), odd.turn())
    elif defect == "stain":
        stain = odd(0.6, 0.95) * ease(2.5 * blob(odd, y, x, where, odd(0.035, 0.1), 0.9))
    elif defect == "knot":
        lump = ease(1.5 * blob(odd, y, x, where, odd(0.036, 0.055), 0.2, odd(0.55, 0.9), odd.turn(0.2)))
    top = np.full((n, n), -1.3)
    colour = np.zeros((3, n, n)) + table
    position = across, down
    for system, sign in ((0, 1.0), (1, -1.0)):
        mine, other = position[system], position[1 - system]
        number = np.clip(np.floor(mine).astype(int), 0, yarns - 1)
        centre = 2 * (mine - number) - 1 + lean[system][number]
        thick = smooth_along(width[system], number, other * (11 / yarns))
        if system == 1 and gap[1] > 0:
            thick = np.where((number == at) & (other > gap[0]) & (other < gap[1]), 0.05, thick)
        side = centre / thick
        round_ = 1 - side * side
        lift = sign * smooth_along(over if system == 0 else over.T, number, other - 0.5)
        twist = other * 2.3 + side * 0.7
        twist = np.abs(2 * (twist - np.floor(twist)) - 1)
        level = 0.34 * lift + 0.62 * np.sqrt(np.maximum(round_, 0)) + 0.07 * twist
        frayed = 0.9 * tone[system][number] - 0.9 + 0.5 * (twist - 0.5)
        seen = (round_ > 0) & (level > top)
        if defect in ("hole", "cut"):
            seen &= tear + 0.6 * frayed <= 0
        top = np.where(seen, level, top)
        dye = dyes[system][:, None, None] * (tone[system][number] * (0.86 + 0.2 * twist))
        colour = np.where(seen, dye, colour)
    colour = colour * (1 + 0.06 * rand.noise(y, x, 100))
    colour = mix(mix(colour, spill, stain), dyes[0], 0.8 * lump)
    return Surface((top + (1.8 - top) * lump) / count, colour, 0.03, 3, 0.2)


def smooth_along(grid: np.ndarray, row: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Values of grid[row] at fractional column u, smoothstep between the nodes."""
    u = np.clip(u, 0, grid.shape[1] - 1)
    k = np.minimum(u.astype(int), grid.shape[1] - 2)
    left = grid[row, k]
    return left + (grid[row, k + 1] - left) * ease(u - k)


# ---------------------------------------------------------------- bracket

def bracket(rand: Random, n: int, defect: str | None, odd: Random) -> Surface:
    """A brushed plate with four countersunk holes and a turned bore, on a matt table."""
    y, x = axes(n)
    cos, sin = rand.turn(0.06)
    cy, cx = rand(0.47, 0.53, 2)
    p, q = (x - cx) * cos + (y - cy) * sin, (y - cy) * cos - (x - cx) * sin     # along and across the part
    holes = [(0.0, 0.0, 0.1, 0.014)]                                            # q, p, radius, countersink
    holes += [(0.185 * down, 0.3 * right, 0.033, 0.022) for down in (-1, 1) for right in (-1, 1)]
    half_p, half_q, corner, thick = 0.395, 0.28, 0.06, 0.03
    ep, eq = np.abs(p) - (half_p - corner), np.abs(q) - (half_q - corner)
    fp, fq = np.maximum(ep, 0), np.maximum(eq, 0)
    inside = corner - np.sqrt(fp * fp + fq * fq) - np.minimum(np.maximum(ep, eq), 0)   # depth behind the outline
    brushed = rand.noise(q + 0.5, p + 0.5, 240, 6) + 0.6 * rand.noise(q + 0.5, p + 0.5, 90, 3)
    brushed = rand(0.6, 1.7) * brushed
    radius = np.sqrt(p * p + q * q)
    turned = smooth_along(rand(-1, 1, (1, 160)), np.zeros((n, n), dtype=int), radius * 800)
    table, steel, fleck = rand(0.035, 0.06), rand(0.26, 0.32), rand.noise(y, x, 110)
    patina, lint = rand.noise(y, x, 5), np.maximum(rand.noise(y, x, 150) - rand(0.86, 0.96), 0)
    for _ in range(2):                                                          # handling marks, nominal
        mark = curve(rand, rand(-0.2, 0.2, 2), rand(0.03, 0.12), bend=0.5, count=3)
        patina = patina + rand(-2.4, 2.4) * np.maximum(1 - distance(q, p, *mark) * 500, 0)

    burr = wound = bare = rust = np.zeros((n, n))
    (hq, hp, hr, _), (aq, ap) = holes[odd.below(5)], odd.turn()
    where = odd(-0.14, 0.14), odd(0.19, 0.33) * (1 if odd() < 0.5 else -1)      # clear of the holes
    if defect == "missing_hole":
        del holes[1 + odd.below(4)]
    elif defect == "burr":
        size = odd(0.011, 0.036)
        burr = ease(1.5 * blob(odd, q, p, (hq + aq * hr, hp + ap * hr), size, 0.8)) * (1 + odd.noise(y, x, 70))
    elif defect == "chip":
        rim = (where[0], half_p) if odd() < 0.5 else (half_q, where[1])
        size, side = odd(0.012, 0.045), -1 if odd() < 0.5 else 1
        bite = blob(odd, q, p, (side * rim[0], side * rim[1]), size, 0.4)
        inside = np.minimum(inside, -0.5 * size * bite)
    elif defect == "dent":
        wound = odd(0.0006, 0.007) * ease(blob(odd, q, p, where, odd(0.016, 0.045), 0.15))
    elif defect == "scratch":
        wide = max(odd(0.0025, 0.0045), 1.5 / n)                 # still seen in a small picture
        points = curve(odd, where, odd(0.1, 0.3), bend=0.6, count=9)
        line = np.maximum(1 - distance(q, p, *points) / wide, 0)
        wound, bare = wide * odd(0.05, 0.5) * line, odd(0.13, 0.3) * (1 if odd() < 0.6 else -1) * line
    elif defect == "rust":
        rust = odd(0.12, 0.8) * ease(2 * blob(odd, q, p, where, odd(0.02, 0.08), 0.9) + 0.5 * odd.noise(y, x, 60))
        rust = rust * (inside > 0)

    height = thick - np.maximum(0.013 - inside, 0) + 0.00008 * brushed
    solid = inside
    recess = np.minimum(np.maximum((0.15 - radius) * 2, 0), 0.004)              # the turned ring round the bore
    height = height - recess
    for cq, cp, size, sink in holes:
        rim = np.sqrt((p - cp) * (p - cp) + (q - cq) * (q - cq)) - size
        if (cq, cp) == (hq, hp):
            rim = rim + 0.007 * burr
            height = height + 0.008 * burr * np.maximum(1 - np.abs(rim) * 80, 0)
        height = np.minimum(height, thick - 0.8 * np.maximum(sink - rim, 0))
        solid = np.minimum(solid, rim)
    height = np.where(solid > 0, height - wound, 0.0)
    metal = np.clip(solid * n + 0.5, 0, 1)
    finish = np.where(recess > 0, turned, brushed)
    tone = steel * (1 + 0.10 * finish + 0.09 * patina + 3 * lint + bare)
    colour = np.stack([tone, tone * 1.01, tone * 1.04])
    colour = mix(colour, (0.16, 0.065, 0.025), rust)
    ground = table * (1 + 0.15 * fleck + 12 * lint)
    colour = mix(np.stack([ground, ground * 1.15, ground * 1.3]), colour, metal)
    return Surface(height, colour, metal * (0.42 + 0.08 * finish) * (1 - rust), 4, 0.0)


def distance(y: np.ndarray, x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n, n) distance to the line through the points."""
    nearest = 9.0
    for y0, x0, y1, x1 in zip(rows[:-1], columns[:-1], rows[1:], columns[1:], strict=True):
        by, bx, ay, ax = y1 - y0, x1 - x0, y - y0, x - x0
        t = np.clip((ay * by + ax * bx) / (by * by + bx * bx), 0, 1)
        ey, ex = ay - t * by, ax - t * bx
        nearest = np.minimum(nearest, ey * ey + ex * ex)
    return np.sqrt(nearest)


SCENES = {
    "granulate": (granulate, ("burnt", "broken", "fused", "shaving", "dust")),
    "weave": (weave, ("missing_yarn", "double_yarn", "hole", "cut", "stain", "knot")),
    "bracket": (bracket, ("scratch", "dent", "chip", "burr", "rust", "missing_hole")),
}
