"""The row pass as one Triton kernel: a program is a row, and reads it in blocks of the vocabulary, twice or three times.

First maxima and sums of exponentials, each lane its own, merged once at the end; last losses and gradient. The gradient of a
row takes a sum over the row: of cross entropy and both KL divergences the first read gives it, the other forms want a read
between the two. A token of fp32 logits of both models and a bf16 gradient is 8 + 8 + 2 = 18 bytes, or 8 + 8 + 8 + 2 = 26;
2 bytes more for an fp32 gradient, 2 a read less for bf16 logits of the teacher, 4 a read less without one.
"""

# A kernel's branches are constants: what one leaves unset the others do not read. Its types are Triton's, not Python's.
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from gakd.losses.row_formulas import INFINITE, LOWEST_LOG_PROB, loss_and_gradient

# 4 tokens a thread, one 16-byte load of each model. Compiled for an H100 that is 40 to 48 registers, so that five or six
# programs of 256 threads share a multiprocessor and keep 40 kB in flight, twice what its share of the bandwidth wants;
# 8 tokens a thread are 73 to 85 registers, and three programs.
BLOCK = 1024
WARPS = 8
# What the kernel keeps of each row, for itself and for who asks.
SUMS = (
    "own_max", "own_log_sum", "max", "log_sum", "teacher_max", "teacher_log_sum", "reverse_kl", "label_log_prob",
    "log_normalizer", "teacher_log_normalizer",
)  # fmt: skip
WIDTH = tl.constexpr(len(SUMS))


@triton.jit
def load_logits(pointer, tokens, size, scale, softcap, SOFTCAP: tl.constexpr):
    """`softcap(scale * product)` in fp32, and -inf beyond `size`."""
    logits = tl.load(pointer + tokens, mask=tokens < size, other=0.0).to(tl.float32) * scale
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2 x) + 1), right at both ends
        logits = softcap * (1.0 - 2.0 / (tl.exp(logits * (2.0 / softcap)) + 1.0))
    return tl.where(tokens < size, logits, float("-inf"))


@triton.jit
def online(logits, top, total):
    """A lane's maximum and sum of `exp(logit - maximum)`, one more logit in; one exponential, of whichever is not 0."""
    distance = logits - top
    small = tl.exp(-tl.abs(distance))
    risen = distance > 0
    rescale, own = tl.where(risen, small, 1.0), tl.where(risen, 1.0, small)
    return tl.maximum(top, logits), total * rescale + own, rescale, own


@triton.jit
def merged(top, total):
    """The maximum of all lanes, and the logarithm of the sum."""
    highest = tl.max(top, 0)
    return highest, tl.log(tl.sum(total * tl.exp(top - highest), 0))


@triton.jit
def log_prob(logits, top, log_sum):
    return tl.maximum((logits - top) - log_sum, LOWEST_LOG_PROB)


@triton.jit
def weighted_gradient(KINDS: tl.constexpr, OF_ROWS: tl.constexpr, numbers, log_q, log_p, q, p, alpha):
    """Sum over the terms of factor times `G`."""
    gradient = q * 0.0
    for i in tl.static_range(len(KINDS)):
        a = alpha if OF_ROWS[i] else numbers[3 * i + 1]
        _, own = loss_and_gradient(KINDS[i], log_q, log_p, q, p, a, numbers[3 * i + 2])
        gradient += numbers[3 * i] * own
    return gradient


# Where a slice of labels or row values begins is no reason to compile anew.
@triton.jit(do_not_specialize=["labels", "weights", "alphas"])
def row_pass_kernel(
    product, product_stride, teacher, teacher_stride, labels, gradient, gradient_stride, sums, losses, weights, alphas,
    vocab_size, compared, scale, softcap, teacher_scale, teacher_softcap, own_cooling, cooling, label_factor, numbers,
    KINDS: tl.constexpr, OF_ROWS: tl.constexpr, SLOTS: tl.constexpr, OWN: tl.constexpr, SHARED: tl.constexpr,
    SAME: tl.constexpr, TEACHER: tl.constexpr, SOFTCAP: tl.constexpr, TEACHER_SOFTCAP: tl.constexpr,
    SUM: tl.constexpr, SUM_MORE: tl.constexpr, GRADIENT: tl.constexpr, WEIGHTS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. Everything that may change from step to step is an argument, what changes the code a constant.

    OWN: the student over its whole head at one temperature (`own_cooling` is 1 over it), for terms of the label. SHARED: both
    models over the first `compared` tokens at another, for terms that compare; SAME where the two are one for the student.
    SUM off: `sums` are there already. SUM_MORE: the read between. WEIGHTS: the label's gradient has a number of each row.
    """
    row = tl.program_id(0).to(tl.int64)
    product += row * product_stride
    gradient += row * gradient_stride
    sums += row * WIDTH
    lanes = tl.arange(0, BLOCK)
    REVERSE: tl.constexpr = SHARED and TEACHER
    if TEACHER:
        teacher += row * teacher_stride
    label = tl.load(labels + row)

    if SUM:
        own_top, own_total = tl.full([BLOCK], LOWEST_LOG_PROB, tl.float32), tl.zeros([BLOCK], tl.float32)
        top, total = own_top, own_total
        teacher_top, teacher_total, reverse = own_top, own_total, own_total
        for start in range(0, vocab_size, BLOCK):
            tokens = start + lanes
            z = load_logits(product, tokens, vocab_size, scale, softcap, SOFTCAP)
            if OWN and not SAME:
                own_top, own_total, _, _ = online(z * own_cooling, own_top, own_total)
            if SHARED:
                z = tl.where(tokens < compared, z * cooling, float("-inf"))
                old_top, old_total = top, total
                top, total, rescale, own = online(z, top, total)
                if TEACHER:
                    t = load_logits(teacher, tokens, compared, teacher_scale, teacher_softcap, TEACHER_SOFTCAP)
                    t = t * cooling
                    old_teacher_top = teacher_top
                    teacher_top, teacher_total, _, _ = online(t, teacher_top, teacher_total)
                    # sum exp(z - top) ((z - top) - (t - teacher_top)), both tops moving; exactly 0 where z = t.
                    moved = (old_top - top) - (old_teacher_top - teacher_top)
                    z, t = tl.maximum(z, LOWEST_LOG_PROB), tl.maximum(t, LOWEST_LOG_PROB)
                    reverse = (reverse + old_total * moved) * rescale + own * ((z - top) - (t - teacher_top))
        if SHARED:
            student_max, student_log_sum = merged(top, total)
            tl.store(sums + 2, student_max)
            tl.store(sums + 3, student_log_sum)
            tl.store(sums + 8, student_max + student_log_sum)
        if REVERSE:
            teacher_max, teacher_log_sum = merged(teacher_top, teacher_total)
            moved = (top - student_max) - (teacher_top - teacher_max)
            reverse_sum = tl.sum((reverse + total * moved) * tl.exp(top - student_max), 0)
            reverse_kl = reverse_sum / tl.exp(student_log_sum) - student_log_sum + teacher_log_sum
            tl.store(sums + 4, teacher_max)
            tl.store(sums + 5, teacher_log_sum)
            tl.store(sums + 6, reverse_kl)
            tl.store(sums + 9, teacher_max + teacher_log_sum)
        if OWN:
            if SAME:
                own_max, own_log_sum = student_max, student_log_sum
            else:
                own_max, own_log_sum = merged(own_top, own_total)
            # A label beyond the head is not a number, and so is its loss.
            inside = (label >= 0) & (label < vocab_size)
            own_logit = load_logits(product, tl.where(inside, label, 0), vocab_size, scale, softcap, SOFTCAP)
            label_log_prob = log_prob(own_logit * own_cooling, own_max, own_log_sum)
            label_log_prob = tl.where(inside, label_log_prob, float("nan"))
            tl.store(sums + 0, own_max)
            tl.store(sums + 1, own_log_sum)
            tl.store(sums + 7, label_log_prob)
    else:
        own_max, own_log_sum = tl.load(sums + 0), tl.load(sums + 1)
        student_max, student_log_sum = tl.load(sums + 2), tl.load(sums + 3)
        teacher_max, teacher_log_sum = tl.load(sums + 4), tl.load(sums + 5)
        reverse_kl, label_log_prob = tl.load(sums + 6), tl.load(sums + 7)

    if GRADIENT:
        if OWN:
            label_weight = label_factor
            if WEIGHTS:
                label_weight += tl.load(weights + row).to(tl.float32)
        alpha = 0.0
        for i in tl.static_range(len(KINDS)):
            if OF_ROWS[i]:
                alpha = tl.load(alphas + row).to(tl.float32)
        slope = 0.0  # the sum of the terms' G, which the softmax takes from each token in proportion to q
        if SUM_MORE:
            slopes = tl.zeros([BLOCK], tl.float32)
            for start in range(0, compared, BLOCK):
                tokens = start + lanes
                z = load_logits(product, tokens, compared, scale, softcap, SOFTCAP) * cooling
                t = load_logits(teacher, tokens, compared, teacher_scale, teacher_softcap, TEACHER_SOFTCAP) * cooling
                log_q = log_prob(z, student_max, student_log_sum)
                log_p = log_prob(t, teacher_max, teacher_log_sum)
                q, p = tl.exp(log_q), tl.exp(log_p)
                slopes += weighted_gradient(KINDS, OF_ROWS, numbers, log_q, log_p, q, p, alpha)
            slope = tl.sum(slopes, 0)
        else:
            for i in tl.static_range(len(KINDS)):
                if KINDS[i] == "reverse_kl":
                    slope += numbers[3 * i] * reverse_kl

        slots = tl.arange(0, SLOTS)
        loss_K = tl.zeros([SLOTS], tl.float32)
        for start in range(0, vocab_size, BLOCK):
            tokens = start + lanes
            z = load_logits(product, tokens, vocab_size, scale, softcap, SOFTCAP)
            total_gradient = tl.zeros([BLOCK], tl.float32)
            if len(KINDS) > 0:
                z_at = tl.where(tokens < compared, z * cooling, float("-inf"))
                t = load_logits(teacher, tokens, compared, teacher_scale, teacher_softcap, TEACHER_SOFTCAP) * cooling
                log_q = log_prob(z_at, student_max, student_log_sum)
                log_p = log_prob(t, teacher_max, teacher_log_sum)
                q, p = tl.exp(log_q), tl.exp(log_p)
                for i in tl.static_range(len(KINDS)):
                    a = alpha if OF_ROWS[i] else numbers[3 * i + 1]
                    loss, _ = loss_and_gradient(KINDS[i], log_q, log_p, q, p, a, numbers[3 * i + 2])
                    loss_K += tl.where(slots == i, tl.sum(loss, 0), 0.0)
                total_gradient = weighted_gradient(KINDS, OF_ROWS, numbers, log_q, log_p, q, p, alpha) - q * slope
            if OWN:
                own_q = tl.exp(log_prob(z * own_cooling, own_max, own_log_sum))
                total_gradient += label_weight * (tl.where(tokens == label, 1.0, 0.0) - own_q)
            if SOFTCAP:
                total_gradient *= 1.0 - (z / softcap) * (z / softcap)
            total_gradient *= scale
            if ADD:
                total_gradient += tl.load(gradient + tokens, mask=tokens < vocab_size, other=0.0).to(tl.float32)
            # Over the logits it may be: nothing of this block is read again.
            tl.store(gradient + tokens, total_gradient.to(gradient.dtype.element_ty), mask=tokens < vocab_size)
        if OWN:
            loss_K += tl.where(slots == len(KINDS), -label_log_prob, 0.0)
        losses += row * SLOTS
        tl.store(losses + slots, tl.where(loss_K > INFINITE, float("inf"), loss_K))
