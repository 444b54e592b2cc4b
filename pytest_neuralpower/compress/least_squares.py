"""Least squares of a layer's weights from Gram matrices of its sampled feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.model_source import Call

#: Modules whose weights are refitted by least squares.
RECONSTRUCTED = (nn.Conv1d, nn.Conv2d, nn.Linear)

Reconstructed: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Linear

Maps = Callable[[str, torch.Tensor, torch.Tensor], None]


def each_map(model: nn.Module, paths: Iterable[str], calls: Iterable[Call], visit: Maps) -> None:
    """Run the calls; hand each named module's input and output to ``visit``, in running order.

    The model runs in inference mode and comes back as it was.
    """
    training = {module: module.training for module in model.modules()}
    hooks = []
    for path in paths:

        def hook(_module: nn.Module, given: Any, made: Any, path: str = path) -> None:
            visit(path, given[0], made)

        hooks.append(model.get_submodule(path).register_forward_hook(hook))
    try:
        model.eval()
        with torch.no_grad():
            for call in calls:
                model(*call.args, **call.kwargs)
    finally:
        for handle in hooks:
            handle.remove()
        for module, was in training.items():
            module.training = was


def weighted_module(model: nn.Module, layer: Layer) -> nn.Module | None:
    """The module whose own weight a convolution or linear layer multiplies by; None for others."""
    if layer.kind not in ("conv", "linear") or not layer.weights:
        return None
    module = model.get_submodule(layer.path)
    weight = getattr(module, "weight", None)
    own = isinstance(weight, torch.Tensor) and weight.shape == layer.weights[0].shape
    return module if own else None


def unfolded_input(module: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Inputs of each product a layer computes.

    Returns
    -------
    Tensor of shape (groups, rows, unknowns)
        Rows are samples x output positions; unknowns are in the order of the weight's dimensions
        after the first.
    """
    if isinstance(module, nn.Linear):
        return given.reshape(1, -1, given.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    sizes: tuple[tuple[int, ...], ...] = (module.kernel_size, module.dilation, module.stride)
    if isinstance(module, nn.Conv1d):  # a map of height 1
        padded = padded.unsqueeze(-2)
        sizes = tuple((1, *size) for size in sizes)
    kernel, dilation, stride = sizes
    columns = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    samples, _, positions = columns.shape
    grouped = columns.view(samples, module.groups, -1, positions)
    return grouped.permute(1, 0, 3, 2).reshape(module.groups, samples * positions, -1)


def unfolded_output(module: nn.Module, made: torch.Tensor) -> torch.Tensor:
    """Outputs of each product: shape (groups, rows, outputs of a group)."""
    if isinstance(module, nn.Linear):
        return made.reshape(1, -1, made.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    samples, channels = made.shape[:2]
    grouped = made.reshape(samples, module.groups, channels // module.groups, -1)
    return grouped.permute(1, 0, 3, 2).reshape(module.groups, -1, channels // module.groups)


# -- Closed-form least squares from Gram matrices, with some weights held at zero.

#: Bytes of the systems solved at once.
_CHUNK_BYTES = 64 * 2**20


@dataclass
class Gram:
    """Sums over the rows of one layer's feature maps, in float64.

    Attributes
    ----------
    inputs
        ``X^T X``, shape (groups, unknowns, unknowns).
    cross
        ``X^T Y``, shape (groups, unknowns, outputs of a group).
    outputs
        ``sum(Y^2)`` of each output, shape (groups, outputs of a group).
    rows
        Samples x positions that were summed.
    """

    inputs: torch.Tensor
    cross: torch.Tensor
    outputs: torch.Tensor
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, unknowns: int, outputs: int) -> Gram:
        return cls(
            torch.zeros(groups, unknowns, unknowns, dtype=torch.float64),
            torch.zeros(groups, unknowns, outputs, dtype=torch.float64),
            torch.zeros(groups, outputs, dtype=torch.float64),
        )

    def add(self, given: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add rows: inputs (groups, rows, unknowns), outputs (groups, rows, outputs)."""
        x, y = given.cpu().double(), wanted.cpu().double()
        self.inputs.baddbmm_(x.mT, x)
        self.cross.baddbmm_(x.mT, y)
        self.outputs += y.square().sum(1)
        self.rows += x.shape[1]

    def ridge(self, share: float) -> torch.Tensor:
        """Ridge of each group, shape (groups,): ``share`` of the mean square of its inputs."""
        return share * self.inputs.diagonal(dim1=1, dim2=2).mean(1)


def solve_kept(
    gram: Gram, prior: torch.Tensor, kept: torch.Tensor, *, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of least squared output error, those not ``kept`` at zero.

    Minimises ``|X w - y|^2 + lambda |w - prior|^2`` over the kept weights of each output, by
    Cholesky's factorisation of their own normal equations.

    Parameters
    ----------
    prior, kept
        Shape (groups, outputs, unknowns): the old weights, and which may differ from zero.
    ridge
        ``lambda`` as a share of the mean square of a group's inputs.

    Returns
    -------
    weights, saliency
        Of ``prior``'s shape. Saliency is how much the minimum rises if that one weight is removed
        too and the others of its output are solved again, ``w^2 / inverse[i, i]`` (Optimal Brain
        Surgeon, Hassibi and Stork 1993); zero where a weight is not kept.
    """
    weights, saliency = torch.zeros_like(prior), torch.zeros_like(prior)
    unknowns = prior.shape[2]
    eye = torch.eye(unknowns, dtype=torch.float64)
    # An input that is always zero leaves its weight to the ridge; all of them, to this floor.
    for group, amount in enumerate(gram.ridge(ridge).clamp_min(1e-12)):
        system = gram.inputs[group] + amount * eye
        wanted = gram.cross[group].mT + amount * prior[group]
        counts = kept[group].sum(1)
        if bool((counts == unknowns).all()):  # one factorisation serves every output
            factor = torch.linalg.cholesky(system)
            weights[group] = torch.cholesky_solve(wanted.mT, factor).mT
            saliency[group] = weights[group].square() / torch.cholesky_inverse(factor).diagonal()
            continue
        # Outputs with about as many weights are solved together, padded to the most.
        order = counts.argsort(descending=True)
        start = 0
        while start < len(order):
            size = int(counts[order[start]])
            if not size:
                break
            rows = order[start : start + max(1, _CHUNK_BYTES // (8 * size**2))]
            start += len(rows)
            picked, index = (
                kept[group][rows].to(torch.uint8).sort(dim=1, descending=True, stable=True)
            )
            index, real = index[:, :size], picked[:, :size].bool()
            both = real[:, :, None] & real[:, None, :]
            part = torch.where(
                both, system[index[:, :, None], index[:, None, :]], eye[:size, :size]
            )
            factor = torch.linalg.cholesky(part)
            right = torch.where(real, wanted[rows[:, None], index], 0.0)
            solved = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
            spread = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
            at = (rows[:, None].expand_as(index)[real], index[real])
            weights[group].index_put_(at, solved[real])
            saliency[group].index_put_(at, (solved.square() / spread)[real])
    return weights, saliency


def relative_error(gram: Gram, weights: torch.Tensor) -> float:
    """Squared error of the layer's output as a share of its square; weights as in `solve_kept`."""
    product = weights @ gram.inputs
    error = gram.outputs - 2 * (weights * gram.cross.mT).sum(2) + (product * weights).sum(2)
    total = float(gram.outputs.sum())
    return max(0.0, float(error.sum())) / total if total else 0.0


# -- A layer's weight and bias as the matrix of its least squares, and back.


def groups_of(module: nn.Module) -> int:
    """Independent convolutions of a layer; 1 for a linear layer."""
    return int(getattr(module, "groups", 1))


def unknowns_of(module: Reconstructed) -> int:
    """Weights of one output, without the bias."""
    return module.weight[0].numel()


def matrix_of(module: Reconstructed) -> torch.Tensor:
    """Weights in float64, shape (groups, outputs of a group, unknowns); a bias is the last one."""
    groups = groups_of(module)
    flat = module.weight.detach().flatten(1)
    if module.bias is not None:
        flat = torch.cat([flat, module.bias.detach()[:, None]], 1)
    return flat.cpu().double().view(groups, -1, flat.shape[1])


def write_matrix(module: Reconstructed, matrix: torch.Tensor) -> None:
    """Put what :func:`matrix_of` returned, changed, back into the layer."""
    flat = matrix.flatten(0, 1)
    unknowns = unknowns_of(module)
    with torch.no_grad():
        module.weight.copy_(flat[:, :unknowns].reshape(module.weight.shape))
        if module.bias is not None:
            module.bias.copy_(flat[:, unknowns])


def all_kept(module: Reconstructed) -> torch.Tensor:
    """Mask of the weights that are not zero now, in the matrix's shape; a bias always stays."""
    kept = matrix_of(module) != 0
    kept[..., unknowns_of(module) :] = True
    return kept


def mask_of(module: Reconstructed, kept: torch.Tensor) -> torch.Tensor:
    """A matrix's mask in the shape of the layer's weight, without the bias."""
    return kept.flatten(0, 1)[:, : unknowns_of(module)].reshape(module.weight.shape)


# -- Gram matrices of a model's layers.

#: Rows of a layer's feature maps that are sampled at most, per weight of one output.
ROWS_PER_UNKNOWN = 8
#: Weights of one output above which no Gram matrix is made: it would take more than 512 MiB.
MOST_UNKNOWNS = 8192


def sampled_grams(
    model: nn.Module,
    reference: nn.Module,
    paths: Sequence[str],
    calls: Sequence[Call],
    *,
    outputs: Mapping[str, torch.Tensor],
    seed: int,
) -> Mapping[str, Gram]:
    """Sums that tell how to make layers of ``model`` return what those of ``reference`` return.

    Inputs are those that the layer sees in ``model`` as it is now, with the errors of the layers
    before it; outputs are those of the same layer in ``reference``. Of each call the same rows
    (positions of samples) are taken from both.

    Parameters
    ----------
    paths
        Layers; one that does not run, or has more than `MOST_UNKNOWNS`, is left out.
    outputs
        Channels of the reference's outputs that the model's layer still has, by path; of a layer
        that is left out, all.
    """
    layers = {
        path: layer
        for path in paths
        if unknowns_of(layer := cast("Reconstructed", model.get_submodule(path))) <= MOST_UNKNOWNS
    }
    generator = torch.Generator().manual_seed(seed)
    grams: dict[str, Gram] = {}
    wanted: dict[str, list[tuple[torch.Tensor | None, torch.Tensor]]] = {}

    def choose_rows(path: str, _given: torch.Tensor, made: torch.Tensor) -> None:
        """Choose rows of what the reference's layer returns."""
        layer = layers[path]
        if path in outputs:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            made = made.index_select(axis, outputs[path].to(made.device))
        rows, picked = unfolded_output(layer, made), None
        most = -(-ROWS_PER_UNKNOWN * unknowns_of(layer) // len(calls))
        if rows.shape[1] > most:
            picked = torch.randperm(rows.shape[1], generator=generator)[:most].to(rows.device)
            rows = rows[:, picked]
        wanted.setdefault(path, []).append((picked, rows))

    def add(path: str, given: torch.Tensor, _made: torch.Tensor) -> None:
        """Add what the model's layer reads in the same rows, with what is wanted of it."""
        layer = layers[path]
        picked, made = wanted[path].pop(0)
        rows = unfolded_input(layer, given)
        if picked is not None:
            rows = rows[:, picked]
        if layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)
        if path not in grams:
            grams[path] = Gram.empty(groups_of(layer), rows.shape[2], made.shape[2])
        grams[path].add(rows, made)

    for call in calls:
        wanted.clear()
        each_map(reference, layers, (call,), choose_rows)
        each_map(model, layers, (call,), add)
    return grams
