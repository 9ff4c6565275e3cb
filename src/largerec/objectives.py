"""Objectives: next-item losses over the tokens whose ``loss_mask_T`` is true.

Each takes queries [T, D] and keys [V, D] as the item head prepares them, targets [T], and returns the mean loss a token; with
weights [T] of the targets the weighted mean, sum(weight * loss) / sum(weight), so that only their ratios matter. They
work through blocks of rows, so that none holds a whole T x V or [T, negatives, D] tensor of a large batch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from largerec.errors import LargeRecError
from largerec.heads import ItemHead
from largerec.kernels import exp_rows_, sampled_loss, softmax_loss
from largerec.options import Options

CHUNK_ELEMENTS = 16_000_000
"""Scores that are held at a time, at most."""
DEVICE_ELEMENTS = 128_000_000
"""The same on a CUDA device, where there is room and each block costs a dozen launches."""
CHUNK_ROWS, BLOCK_KEYS = 256, 2048
"""Rows and keys whose scores a cache of 2 MB holds (measured on a Zen 3; docs/log.md, 26 November)."""


class SoftmaxOptions(Options):
    """Cross-entropy over the whole catalogue.

    ``label_smoothing`` (Szegedy et al. 2016, section 7): this share of each target's weight is spread over all V items alike.
    """

    name: Literal["softmax"] = "softmax"
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class SampledSoftmaxOptions(Options):
    """Cross-entropy over the target and sampled negatives.

    ``sampling``: items uniformly, by training counts, or ``mixed``: each negative uniformly with probability ``uniform_share``,
    else by training counts (after Yang et al. 2020, "Mixed Negative Sampling", whose second kind is the batch's own targets;
    here the law of both together is known exactly). ``shared``: one set of negatives a step (one matrix product), or a set for
    each position. ``logq``: correct the negatives' logits so that the sum estimates the one over the catalogue.
    """

    name: Literal["sampled-softmax"] = "sampled-softmax"
    negatives: int = Field(512, ge=1)
    shared: bool = True
    sampling: Literal["uniform", "popularity", "mixed"] = "uniform"
    uniform_share: float = Field(0.5, gt=0, lt=1)
    logq: bool = True

    @model_validator(mode="after")
    def _a_share_needs_a_mixture(self) -> Self:
        if self.sampling != "mixed" and self.uniform_share != type(self).model_fields["uniform_share"].default:
            raise LargeRecError(
                f"objective.uniform_share={self.uniform_share} says how much of a mixture is uniform, but objective.sampling="
                f"{self.sampling!r} mixes nothing. Set objective.sampling = mixed, or leave the share out."
            )
        return self

    def law(self, counts_V: torch.Tensor) -> torch.Tensor | None:
        """The probability that a draw is each item, float64 [V]; None where all are alike."""
        if self.sampling == "uniform":
            return None
        by_count_V = counts_V.double() / counts_V.sum()
        if self.sampling == "popularity":
            return by_count_V
        return self.uniform_share / len(counts_V) + (1 - self.uniform_share) * by_count_V


class BCEOptions(Options):
    """Binary cross-entropy of the target against uniform negatives of each position (SASRec, Kang & McAuley 2018, eq. 7)."""

    name: Literal["bce"] = "bce"
    negatives: int = Field(1, ge=1)


class GBCEOptions(Options):
    """Generalised BCE (gSASRec, Petrov & Macdonald 2023, eq. 12-17): the positive's probability to the power beta.

    ``calibration`` is the paper's t: 0 is plain BCE, 1 undoes the overconfidence of sampling.
    """

    name: Literal["gbce"] = "gbce"
    negatives: int = Field(256, ge=1)
    calibration: float = Field(0.75, ge=0, le=1)


AnyObjectiveOptions = Annotated[SoftmaxOptions | SampledSoftmaxOptions | BCEOptions | GBCEOptions, Field(discriminator="name")]


OBJECTIVES = tuple(group().name for group in (SoftmaxOptions, SampledSoftmaxOptions, BCEOptions, GBCEOptions))


def weighted_mean(loss_T: torch.Tensor, weight_T: torch.Tensor | None) -> torch.Tensor:
    """sum(weight * loss) / sum(weight), or the plain mean."""
    return loss_T.mean() if weight_T is None else (loss_T * weight_T).sum() / weight_T.sum()


def _total(rows_TD: torch.Tensor, weight_T: torch.Tensor | None) -> float:
    """What a sum over targets is divided by to be their mean."""
    return float(len(rows_TD) if weight_T is None else weight_T.sum())


class _ChunkedSoftmax(torch.autograd.Function):
    """Mean cross-entropy over all keys; gradients are made chunk by chunk in the forward pass, so no chunk of logits is kept.

    With p = exp(logits - max) and s its row sum, the gradient of a row is p / s minus one at the target; the row factor 1 / s is
    put on the thin [T, D] sides of the two products instead of on the wide [T, V] one. The keys come in blocks whose logits are
    used while the cache still holds them; each block has a maximum of its own, and what that changes is a row factor too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries_TD: torch.Tensor,
        keys_VD: torch.Tensor,
        target_T: torch.Tensor,
        low_precision: bool,
        weight_T: torch.Tensor | None,
    ) -> torch.Tensor:
        kind = torch.bfloat16 if low_precision else keys_VD.dtype
        keys = keys_VD.detach().to(kind)
        queries = queries_TD.detach()
        query_gradient_TD, key_gradient_VD = torch.empty_like(queries), torch.zeros_like(keys_VD)
        losses = []
        wide = torch.promote_types(kind, torch.float32)
        on_cpu = keys.device.type == "cpu"
        width, most = (BLOCK_KEYS, CHUNK_ROWS) if on_cpu else (len(keys), len(queries))
        blocks = torch.split(keys, width)
        rows = max(1, min(most, (CHUNK_ELEMENTS if on_cpu else DEVICE_ELEMENTS) // len(keys)))
        kept = keys.new_empty(min(rows, len(queries)) * len(keys))
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            q_CD, target_C = queries[part], target_T[part]
            narrow_CD, own_CD = q_CD.to(kind), keys[target_C]
            room = torch.split(kept[: len(q_CD) * len(keys)], len(q_CD) * width)
            p_NCB = [room_CB.view(len(q_CD), -1) for room_CB in room]
            statistics_N2C, products_NCD = [], []
            for key_BD, p_CB in zip(blocks, p_NCB, strict=True):
                torch.mm(narrow_CD, key_BD.T, out=p_CB)
                statistics_N2C.append(torch.stack(exp_rows_(p_CB)))
                products_NCD.append(p_CB @ key_BD)
            largest_NC, sum_NC = torch.stack(statistics_N2C, 1)
            largest_C = largest_NC.amax(0)
            factor_NC = (largest_NC - largest_C).exp_()
            sum_C = (sum_NC * factor_NC).sum(0)
            losses.append(sum_C.log() + largest_C - (narrow_CD.to(wide) * own_CD.to(wide)).sum(1))
            share_NC1 = (factor_NC / sum_C)[..., None]
            gradient_CD = query_gradient_TD[part].copy_(-keys_VD.detach()[target_C])
            for product_CD, share_C1 in zip(products_NCD, share_NC1, strict=True):
                gradient_CD.addcmul_(product_CD.to(wide), share_C1)
            if weight_T is not None:
                gradient_CD.mul_(weight_T[part, None])
                q_CD = q_CD * weight_T[part, None]
            for p_CB, share_C1, key_gradient_BD in zip(p_NCB, share_NC1, torch.split(key_gradient_VD, width), strict=True):
                if kind == keys_VD.dtype:
                    key_gradient_BD.addmm_(p_CB.T, q_CD * share_C1)
                else:
                    key_gradient_BD.add_(p_CB.T @ (q_CD * share_C1).to(kind))
        key_gradient_VD.index_add_(0, target_T, queries if weight_T is None else queries * weight_T[:, None], alpha=-1)
        total = _total(queries, weight_T)
        ctx.save_for_backward(query_gradient_TD.div_(total), key_gradient_VD.div_(total))
        return weighted_mean(torch.cat(losses), weight_T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_gradient_TD, key_gradient_VD = ctx.saved_tensors
        return gradients[0] * query_gradient_TD, gradients[0] * key_gradient_VD, None, None, None


def full_softmax(
    queries_TD: torch.Tensor,
    keys_VD: torch.Tensor,
    target_T: torch.Tensor,
    *,
    smoothing: float = 0.0,
    low_precision: bool = False,
    weight_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy over the catalogue; ``low_precision`` makes the products in bfloat16 (gradients stay float32).

    With ``smoothing`` e the target of a row is (1 - e) at its item and e / V more at each. The loss, log(sum of exp) less the
    mean of the logits under that target, is then the plain one plus e (logit of the target - mean logit); and the mean
    logit is the query times the mean key, so that no logits are needed for it.
    """
    if smoothing:
        plain = full_softmax(queries_TD, keys_VD, target_T, low_precision=low_precision, weight_T=weight_T)
        ahead_TD = F.embedding(target_T, keys_VD) - keys_VD.mean(0)
        ahead_TD = ahead_TD if weight_T is None else ahead_TD * weight_T[:, None]
        return plain + smoothing * (queries_TD.float() * ahead_TD).sum() / (_total(queries_TD, weight_T) or 1)
    if len(target_T) == 0:
        return queries_TD.float().sum() + 0 * keys_VD.sum()
    fusible = low_precision and weight_T is None  # the fused operator knows no weights
    if fusible and (fused := softmax_loss(queries_TD.float(), keys_VD, target_T)) is not None:
        return fused
    arguments = (queries_TD.float(), keys_VD, target_T, low_precision, weight_T)
    loss: torch.Tensor = _ChunkedSoftmax.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


class Hits(NamedTuple):
    """Negatives that are the target of a row: pairs of row (rising) and column. They are few, so no [T, K] mask is made."""

    row: torch.Tensor
    column: torch.Tensor

    @classmethod
    def of(cls, target_T: torch.Tensor, negative_K: torch.Tensor) -> Hits:
        ordered_K, order_K = negative_K.sort()
        first_T = torch.searchsorted(ordered_K, target_T)
        count_T = torch.searchsorted(ordered_K, target_T, right=True) - first_T
        row = torch.repeat_interleave(torch.arange(len(target_T), device=target_T.device), count_T)
        within = torch.arange(len(row), device=row.device) - torch.repeat_interleave(count_T.cumsum(0) - count_T, count_T)
        return cls(row, order_K[first_T[row] + within])


class _SharedSoftmax(torch.autograd.Function):
    """Mean of log(exp(positive) + sum of exp(negatives)) - positive, one set of negatives for all rows; as _ChunkedSoftmax."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_TD: torch.Tensor,
        keys_KD: torch.Tensor,
        correction_K: torch.Tensor,
        hits: Hits,
        positive_T: torch.Tensor,
        low_precision: bool,
        weight_T: torch.Tensor | None,
    ) -> torch.Tensor:
        kind = torch.bfloat16 if low_precision else keys_KD.dtype
        keys = keys_KD.detach().to(kind)
        # The correction is a factor, not a term of the logits: bfloat16 keeps a factor to .4 %, a term of 10 only to .03.
        top = float(correction_K.max())
        factor_K = (correction_K - top).exp().to(kind)
        query_gradient_TD, key_gradient_KD = torch.empty_like(queries_TD), torch.zeros_like(keys_KD)
        positive_gradient_T = torch.empty_like(positive_T)
        losses = []
        rows = max(1, (CHUNK_ELEMENTS if keys.device.type == "cpu" else DEVICE_ELEMENTS) // len(keys))
        for start in range(0, len(queries_TD), rows):
            part = slice(start, start + rows)
            query_CD, positive_C = queries_TD.detach()[part], positive_T.detach()[part]
            p_CK = query_CD.to(kind) @ keys.T
            first, last = torch.searchsorted(hits.row, hits.row.new_tensor([start, start + rows])).tolist()
            p_CK[hits.row[first:last] - start, hits.column[first:last]] = float("-inf")
            largest_C, sum_C = exp_rows_(p_CK, factor_K, positive_C)
            largest_C = largest_C + top
            own_C = (positive_C - largest_C).exp()
            sum_C = sum_C + own_C
            losses.append(sum_C.log() + largest_C - positive_C)
            share_C1 = (1 / sum_C)[:, None]
            positive_gradient_T[part] = own_C * share_C1[:, 0] - 1
            if weight_T is not None:
                positive_gradient_T[part] *= weight_T[part]
                share_C1 = share_C1 * weight_T[part, None]
            query_gradient_TD[part] = (p_CK @ keys).float() * share_C1
            key_gradient_KD.add_(p_CK.T @ (query_CD * share_C1).to(kind))
        n = _total(positive_T, weight_T)
        ctx.save_for_backward(query_gradient_TD.div_(n), key_gradient_KD.div_(n), positive_gradient_T.div_(n))
        return weighted_mean(torch.cat(losses), weight_T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_gradient_TD, key_gradient_KD, positive_gradient_T = ctx.saved_tensors
        g = gradients[0]
        return g * query_gradient_TD, g * key_gradient_KD, None, None, g * positive_gradient_T, None, None


def shared_softmax(
    queries_TD: torch.Tensor,
    keys_KD: torch.Tensor,
    correction_K: torch.Tensor,
    hits: Hits,
    positive_T: torch.Tensor,
    low_precision: bool = False,
    weight_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of each row's positive score against the same K negatives, whose scores get ``correction_K`` added.

    ``hits`` are the negatives that do not count in a row.
    """
    arguments = (queries_TD, keys_KD, correction_K, hits, positive_T, low_precision, weight_T)
    loss: torch.Tensor = _SharedSoftmax.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def softmax_of_scores(
    score_TK: torch.Tensor, hits: Hits, positive_T: torch.Tensor, weight_T: torch.Tensor | None = None
) -> torch.Tensor:
    """As :func:`shared_softmax`, of corrected scores that are there already."""
    if len(positive_T) == 0:
        return positive_T.sum() + 0 * score_TK.sum()
    score_TK = score_TK.index_put((hits.row, hits.column), score_TK.new_tensor(float("-inf")))
    return weighted_mean(torch.logaddexp(positive_T, score_TK.logsumexp(1)) - positive_T, weight_T)


class Objective:
    """The loss that a recipe names, with its negative sampler (torch's global random state, on the CPU)."""

    def __init__(
        self,
        options: SoftmaxOptions | SampledSoftmaxOptions | BCEOptions | GBCEOptions,
        counts_V: torch.Tensor,
        device: torch.device | None = None,
    ) -> None:
        self.options, self.size = options, len(counts_V)
        law_V = options.law(counts_V) if isinstance(options, SampledSoftmaxOptions) else None
        self.corrected = isinstance(options, SampledSoftmaxOptions) and options.logq
        self.cumulative_V = None if law_V is None else law_V.cumsum(0)
        log_q_V = torch.full((self.size,), -self._log_size()) if law_V is None else law_V.log().float()
        self.log_q_V = log_q_V.to(device)

    def _log_size(self) -> float:
        return float(torch.tensor(float(self.size)).log())

    def _negatives(self, *shape: int) -> torch.Tensor:
        if self.cumulative_V is None:
            return torch.randint(self.size, shape)
        return torch.searchsorted(self.cumulative_V, torch.rand(shape, dtype=torch.float64)).clamp_max(self.size - 1)

    def draw(self, tokens: int) -> torch.Tensor | None:
        """Negatives of one step: [K] items for all positions, [tokens, K], or None where the objective draws none."""
        options = self.options
        if isinstance(options, SoftmaxOptions):
            return None
        shared = isinstance(options, SampledSoftmaxOptions) and options.shared
        return self._negatives(options.negatives) if shared else self._negatives(tokens, options.negatives)

    def __call__(
        self,
        queries_TD: torch.Tensor,
        keys_VD: torch.Tensor,
        target_T: torch.Tensor,
        *,
        negatives: torch.Tensor | None = None,
        rows_V: torch.Tensor | None = None,
        low_precision: bool = False,
        mixing: ItemHead | None = None,
        weight_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean loss a token, weighted where there are weights.

        Args:
            queries_TD: hidden states as ``ItemHead.queries`` gives them.
            keys_VD: the item table as ``ItemHead.keys`` gives it.
            target_T: the next item of each position.
            negatives: what ``draw`` gave, or None to draw now.
            rows_V: the items of the rows of ``keys_VD`` where it is a part of the table; targets and negatives then name rows.
            low_precision: the wide matrix products in bfloat16; a mixture's stay in float32.
            mixing: a head that is a mixture of logits; ``keys_VD`` are then rows of the table, of which it prepares the drawn.
            weight_T: how much each target counts, above 0.
        """
        options = self.options
        if isinstance(options, SoftmaxOptions):
            return full_softmax(
                queries_TD,
                keys_VD,
                target_T,
                smoothing=options.label_smoothing,
                low_precision=low_precision,
                weight_T=weight_T,
            )
        queries_TD = queries_TD.float()
        if negatives is None:
            negatives = self.draw(len(target_T))
            assert negatives is not None
            negatives = negatives.to(target_T.device)
        log_q_V = None
        if self.corrected:
            log_q_V = self.log_q_V if rows_V is None else self.log_q_V[rows_V]
        if isinstance(options, SampledSoftmaxOptions) and options.shared:
            hits = Hits.of(target_T, negatives)
            own_TD, key_KD = F.embedding(target_T, keys_VD), F.embedding(negatives, keys_VD)
            if mixing is not None:
                own_TD, key_KD = mixing.keys(own_TD), mixing.keys(key_KD)
            own_T = (queries_TD * own_TD).sum(1) if mixing is None else mixing.own_scores(queries_TD, own_TD)
            correction_K = queries_TD.new_zeros(len(negatives))
            if log_q_V is not None:
                draws_T = len(negatives) - torch.bincount(hits.row, minlength=len(target_T))
                own_T, correction_K = own_T - _shift(log_q_V[target_T], draws_T), -log_q_V[negatives]
            if mixing is not None:
                return softmax_of_scores(mixing.scores(queries_TD, key_KD) + correction_K, hits, own_T, weight_T)
            return shared_softmax(queries_TD, key_KD, correction_K, hits, own_T, low_precision, weight_T)
        assert mixing is None, "a mixture of logits learns with negatives that all positions share"
        if isinstance(options, SampledSoftmaxOptions):
            return sampled_loss(queries_TD, keys_VD, target_T, negatives, log_q_V, softmax=True, weight_T=weight_T)
        power = gbce_power(options.negatives, self.size, options.calibration) if isinstance(options, GBCEOptions) else 1.0
        return sampled_loss(queries_TD, keys_VD, target_T, negatives, softmax=False, power=power, weight_T=weight_T)


def _shift(log_q_T: torch.Tensor, draws_T: torch.Tensor) -> torch.Tensor:
    """What makes corrected negatives estimate the sum over the catalogue without the target: log(1 - q(target)) - log(draws).

    Negatives that are the target are dropped, so q is renormalised over the others. In log(exp(positive) + exp(shift) * sum)
    - positive, the shift of a row is moved to its positive. [T]
    """
    return torch.log1p(-log_q_T.exp().clamp_max(1 - 1e-6)) - draws_T.clamp_min(1).log()


def gbce_power(negatives: int, size: int, calibration: float) -> float:
    """beta of gBCE: alpha * (t * (1 - 1/alpha) + 1/alpha), where alpha is the sampling rate (gSASRec, eq. 15-17)."""
    alpha = min(1.0, negatives / max(1, size - 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
