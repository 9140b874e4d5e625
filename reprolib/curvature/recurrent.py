"""Recurrent layers and cells in basic operations, step by step: the fused kernels have no second derivative.

Each takes the arguments of ``torch.lstm``, ``torch.gru``, … as the modules give them; the weights are those of all layers and
directions in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Callable[[Tensor], Tensor]], State]  # (W x + b, state, h ↦ V h + c) -> state


def _lstm_step(gates: Tensor, state: State, recurrent: Callable[[Tensor], Tensor]) -> State:
    """C = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c)."""
    h, c = state
    i, f, g, o = (gates + recurrent(h)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(gates: Tensor, state: State, recurrent: Callable[[Tensor], Tensor]) -> State:
    """H = n + z (h − n), n = tanh(n_x + r n_h)."""
    (h,) = state
    (r, z, n), (r_h, z_h, n_h) = gates.chunk(3, -1), recurrent(h).chunk(3, -1)
    n = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
    return (n + torch.sigmoid(z + z_h) * (h - n),)


def _plain_step(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(gates: Tensor, state: State, recurrent: Callable[[Tensor], Tensor]) -> State:
        return (activation(gates + recurrent(state[0])),)

    return step


def _layers(
    step: Step, x: Tensor, start: State, weights: Sequence[Tensor], biased: bool, layers: int, dropout: float,
    training: bool, bidirectional: bool, batch_first: bool, projected: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(outputs of the last layer, last states of all layers)."""
    x = x.transpose(0, 1) if batch_first else x
    each = 2 + 2 * biased + projected
    directions = 2 if bidirectional else 1
    ends: list[State] = []
    for layer in range(layers):
        outputs = []
        for backwards in range(directions):
            k = layer * directions + backwards
            w, v, *rest = weights[k * each : (k + 1) * each]
            b, c = rest[:2] if biased else (None, None)
            project = rest[-1] if projected else None
            state, made = tuple(s[k] for s in start), []
            steps = F.linear(x, w, b).unbind(0)
            for gates in reversed(steps) if backwards else steps:
                state = step(gates, state, lambda h: F.linear(h, v, c))  # noqa: B023
                if project is not None:
                    state = (F.linear(state[0], project), *state[1:])
                made.append(state[0])
            outputs.append(torch.stack(made[::-1] if backwards else made))
            ends.append(state)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout > 0 and training and layer < layers - 1:
            x = F.dropout(x, dropout, True)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(s) for s in zip(*ends, strict=True)))


def lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """``torch.lstm``."""
    projected = hx[0].shape[-1] != hx[1].shape[-1]
    options = (has_biases, num_layers, dropout, train, bidirectional, batch_first, projected)
    return _layers(_lstm_step, input, tuple(hx), params, *options)


def _one_state(step: Step) -> Callable:
    def layer(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
        options = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
        return _layers(step, input, (hx,), params, *options)

    return layer


gru, rnn_tanh, rnn_relu = (_one_state(s) for s in (_gru_step, _plain_step(torch.tanh), _plain_step(torch.relu)))


def lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """``torch.lstm_cell``."""
    return _lstm_step(F.linear(input, w_ih, b_ih), tuple(hx), lambda h: F.linear(h, w_hh, b_hh))


def _cell(step: Step) -> Callable:
    def cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
        return step(F.linear(input, w_ih, b_ih), (hx,), lambda h: F.linear(h, w_hh, b_hh))[0]

    return cell


gru_cell, rnn_tanh_cell, rnn_relu_cell = (
    _cell(s) for s in (_gru_step, _plain_step(torch.tanh), _plain_step(torch.relu))
)
