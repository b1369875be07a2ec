"""Matrices of low rank."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddp_agent.config.fields import NonNegativeFloat, PositiveInt
from ddp_agent.distributed.comm import Comm
from ddp_agent.distributed.traffic import Collective, Shapes
from ddp_agent.reducers.base import Finish
from ddp_agent.reducers.common.feedback import ErrorFeedback

SEED = 1905  # for the first basis, the same on every rank


@dataclass(frozen=True)
class _Piece:
    """A parameter as a matrix of `rows` x `cols`, sent as two factors of `rank` columns. Rank 0: sent exactly."""

    rows: int
    cols: int
    rank: int


@dataclass(kw_only=True)
class PowerSGD(ErrorFeedback):
    """Matrices sent as products of two thin ones, the rest exactly; error feedback (Vogels et al., arXiv:1905.13727).

    A parameter of two or more dimensions is a matrix M [shape[0], rest]. Each call takes one step of power iteration
    from the basis Q [cols, rank] of the last call: P = orthonormal(mean of M Q), Q = mean of M^T P. The result is
    P Q^T. Vectors are sent exactly, and so are matrices that would not become more than `min_compression` times
    smaller. Every rank computes P from the same mean and must get the same bits: use equal machines.
    """

    _traits = replace(ErrorFeedback._traits, works_in_buckets=True)
    kept: ClassVar[tuple[str, ...]] = ("residual", "basis")

    rank: PositiveInt = 2
    min_compression: NonNegativeFloat = 1.0

    basis: Tensor | None = field(default=None, init=False, repr=False, compare=False)  # every Q, orthonormal, flat

    def traffic(self, shapes: Shapes, itemsize: int, ranks: int) -> list[Collective]:
        pieces = self._pieces([torch.Size(shape) for shape in shapes])
        first = sum(piece.rows * (piece.rank or piece.cols) for piece in pieces)
        second = sum(piece.cols * piece.rank for piece in pieces)
        size = max(itemsize, 4)  # half precision travels as fp32
        sent = [first, second] if second else [first]
        return [Collective(kind="all_reduce", payload_bytes=each * size, ranks=ranks) for each in sent]

    def transmit(self, tensor: Tensor, residual: Tensor, comm: Comm) -> Finish:
        pieces = self._pieces(self.shapes or [tensor.shape])
        low = [piece for piece in pieces if piece.rank]
        # Half precision is too narrow to orthogonalise in. In wider types all parts are views of the residual itself.
        precise = residual.to(torch.promote_types(residual.dtype, torch.float32))
        whole = [(piece.rows, piece.cols) for piece in pieces]
        exact, matrices = _divided(pieces, _cut(precise, whole))
        exact_results, results = _divided(pieces, _cut(tensor, whole))
        packed = _flat(precise, [*exact, *map(torch.mm, matrices, self._bases(low, precise))])
        pending = comm.start_all_reduce_(packed)

        def finish() -> None:
            pending.wait()
            packed.mul_(1 / comm.size)
            means = _cut(packed, [*(part.shape for part in exact), *((piece.rows, piece.rank) for piece in low)])
            lefts = [_orthonormal(mean) for mean in means[len(exact) :]]
            flat_rights = _flat(precise, [matrix.T @ left for matrix, left in zip(matrices, lefts, strict=True)])
            rights = _cut(flat_rights, [(piece.cols, piece.rank) for piece in low])
            for matrix, left, right in zip(matrices, lefts, rights, strict=True):
                matrix.addmm_(left, right.T, alpha=-1)
            for part in exact:
                part.zero_()
            residual.copy_(precise)
            if low:
                comm.all_reduce_(flat_rights)
                flat_rights.mul_(1 / comm.size)
            for result, left, right in zip(results, lefts, rights, strict=True):
                result.copy_(left @ right.T)
            for result, mean in zip(exact_results, means, strict=False):
                result.copy_(mean)
            # Orthonormal, so that the next call also covers directions in which this call's matrices had nothing
            # (gradients are often of low rank). Otherwise even a full rank would miss them. The span is the same.
            self.basis = _flat(precise, [_orthonormal(right) for right in rights])

        return finish

    def sizes(self, shapes: Sequence[torch.Size]) -> dict[str, int]:
        return super().sizes(shapes) | {"basis": sum(piece.cols * piece.rank for piece in self._pieces(shapes))}

    def _pieces(self, shapes: Sequence[torch.Size]) -> list[_Piece]:
        pieces = []
        for shape in shapes:
            rows, cols = (shape[0], shape[1:].numel()) if len(shape) > 1 else (1, shape.numel())
            rank = min(self.rank, rows, cols)
            worthwhile = len(shape) > 1 and rows * cols > self.min_compression * (rows + cols) * rank
            pieces.append(_Piece(rows, cols, rank if worthwhile else 0))
        return pieces

    def _bases(self, low: Sequence[_Piece], like: Tensor) -> list[Tensor]:
        shapes = [(piece.cols, piece.rank) for piece in low]
        if self.basis is not None:
            self._check_size("basis", self.basis, sum(cols * rank for cols, rank in shapes))
            return _cut(self.basis.to(like), shapes)
        generator = torch.Generator().manual_seed(SEED)
        random = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return [_orthonormal(q).to(like) for q in random]


def _divided(pieces: Sequence[_Piece], parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parts that are sent exactly, and the parts of low rank."""
    pairs = list(zip(pieces, parts, strict=True))
    return [part for piece, part in pairs if not piece.rank], [part for piece, part in pairs if piece.rank]


def _orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns that span `columns`; further ones where these are linearly dependent, or zero."""
    q: Tensor = torch.linalg.qr(columns).Q
    return q


def _flat(like: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([like.new_empty(0), *(tensor.reshape(-1) for tensor in tensors)])


def _cut(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return consecutive views of `flat` in these shapes."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(*shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
