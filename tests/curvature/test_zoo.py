"""Networks of torchvision, timm and transformers as they come, small: is the curvature that of double backward?

With the extra ``zoo``; without one of the libraries its networks are skipped. ``python -m tests.curvature.test_zoo`` writes
the table that the book shows, book/records/networks.csv and .json.
"""

from __future__ import annotations

import importlib
import json
import math
import platform
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.curvature import expand
from reprolib.errors import ReprolibError

TABLE = Path(__file__).resolve().parents[2] / "book" / "records" / "networks"
CLASSES, BATCH = 3, 2

VISION = {  # torchvision: name -> size of the image
    "alexnet": 64, "vgg11": 32, "resnet18": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32, "densenet121": 32,
    "googlenet": 32, "inception_v3": 80, "squeezenet1_1": 48, "shufflenet_v2_x0_5": 32, "mobilenet_v2": 32,
    "mobilenet_v3_small": 32, "mnasnet0_5": 32, "regnet_y_400mf": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "convnext_tiny": 32, "swin_t": 32, "swin_v2_t": 32, "vit_b_16": 32,
}  # fmt: skip
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TIMM = {  # name -> options that make it small
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2}, "deit3_small_patch16_224": {"img_size": 32, "depth": 2},
    "beit_base_patch16_224": {"img_size": 32, **SMALL}, "cait_xxs24_224": {"img_size": 32, "depth": 2},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2}, "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "mixer_s32_224": {"img_size": 32}, "gmlp_s16_224": {"img_size": 32},
    "resmlp_12_224": {"img_size": 32}, "coatnet_nano_rw_224": {"img_size": 64},
    "convnextv2_atto": {}, "mobilenetv4_conv_small": {}, "ghostnet_050": {}, "res2net50_26w_4s": {}, "seresnet50": {},
    "resnest14d": {}, "tinynet_e": {}, "poolformer_s12": {}, "edgenext_xx_small": {}, "rexnet_100": {}, "dm_nfnet_f0": {},
    "efficientnet_lite0": {},
}  # fmt: skip
TINY = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
LANGUAGE = {  # transformers: model -> options of its configuration
    "Bert": TINY, "Roberta": TINY, "Electra": TINY | {"embedding_size": 16}, "Albert": TINY | {"embedding_size": 16},
    "DistilBert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    "GPT2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "Llama": TINY | {"num_key_value_heads": 2}, "Mistral": TINY | {"num_key_value_heads": 2},
    "Qwen2": TINY | {"num_key_value_heads": 2},
    "OPT": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
            "max_position_embeddings": 32, "word_embed_proj_dim": 16},
    "T5": {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "Mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip

Built = tuple[nn.Module, Callable[[], Tensor]]


def torchvision(name: str) -> Built:
    models = importlib.import_module("torchvision.models")
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"image_size": 32, "num_layers": 2} if name == "vit_b_16" else {}
    make = models.get_model if not name.startswith("vit") else _small_vit
    net = make(name, weights=None, num_classes=CLASSES, **options)
    x = torch.randn(BATCH, 3, VISION[name], VISION[name])
    return net, lambda: net(x.to(next(net.parameters())))


def _small_vit(name: str, weights: None, num_classes: int, image_size: int, num_layers: int) -> nn.Module:
    vit = importlib.import_module("torchvision.models.vision_transformer").VisionTransformer
    return vit(image_size, 16, num_layers, 2, 32, 64, num_classes=num_classes)


def timm(name: str) -> Built:
    net = importlib.import_module("timm").create_model(name, num_classes=CLASSES, **TIMM[name])
    size = TIMM[name].get("img_size", 64)
    x = torch.randn(BATCH, 3, size, size)
    return net, lambda: net(x.to(next(net.parameters())))


def transformers(name: str) -> Built:
    library = importlib.import_module("transformers")
    core = getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**LANGUAGE[name]))
    net = nn.ModuleDict({"core": core, "head": nn.Linear(16, CLASSES)})
    tokens = torch.randint(1, 40, (BATCH, 6))
    more = {"decoder_input_ids": tokens} if name == "T5" else {}
    return net, lambda: net["head"](core(input_ids=tokens, **more).last_hidden_state.mean(1))


LIBRARIES: dict[str, tuple[Callable[[str], Built], tuple[str, ...]]] = {
    "torchvision": (torchvision, tuple(VISION)),
    "timm": (timm, tuple(TIMM)),
    "transformers": (transformers, tuple(LANGUAGE)),
}
SINGLE = {
    "Llama",
    "Mistral",
    "Qwen2",
    "T5",
    "Mamba",
}  # compute their norms in single precision, whatever they are given
ALL = [(library, name) for library, (_, names) in LIBRARIES.items() for name in names]


def tolerance(name: str) -> float:
    """What rounding may take: 3e-7 was seen of those in single precision, 1e-12 of the others."""
    return 1e-6 if name in SINGLE else 1e-9


def asked(library: str, name: str) -> tuple[float, float, str]:
    """dᵀ∇²J d by the tape and by double backward, and why it was handed over."""
    torch.manual_seed(0)
    net, closure = LIBRARIES[library][0](name)
    net.double().train()
    params = [p for p in net.parameters() if p.requires_grad]
    y = torch.arange(BATCH) % CLASSES
    loss = lambda out: F.cross_entropy(out, y, reduction="none")
    g = torch.Generator().manual_seed(1)
    d = tuple(torch.randn(p.shape, generator=g, dtype=p.dtype) * p.detach().abs().mean() for p in params)
    buffers = [b.clone() for b in net.buffers()]
    torch.manual_seed(2)
    model = expand(closure, loss, params)
    found = float(model.curvature(d).mean())
    with torch.no_grad():
        for b, before in zip(net.buffers(), buffers, strict=True):
            b.copy_(before)
    torch.manual_seed(2)
    with suppress(NotImplementedError, RuntimeError), sdpa_kernel(SDPBackend.MATH):  # PyTorch may have none
        slope = torch.autograd.grad(loss(closure()).mean(), params, create_graph=True, allow_unused=True)
        slope = torch.stack([(a * b).sum() for a, b in zip(slope, d, strict=True) if a is not None]).sum()
        bent = torch.autograd.grad(slope, params, allow_unused=True)
        expected = float(sum((a * b).sum() for a, b in zip(bent, d, strict=True) if a is not None))
        return found, expected, model.handed_over
    return found, math.nan, model.handed_over


@pytest.mark.filterwarnings("default")  # of those libraries
@pytest.mark.filterwarnings("error::reprolib.errors.HandedOver")
@pytest.mark.parametrize(("library", "name"), ALL, ids=[f"{library}-{name}" for library, name in ALL])
def test_the_curvature_is_that_of_double_backward_and_nobody_hands_over(library, name):
    pytest.importorskip(library)
    found, expected, why = asked(library, name)
    if math.isnan(expected):
        pytest.skip("PyTorch cannot differentiate it twice in reverse mode")
    assert not why
    assert abs(found - expected) <= tolerance(name) * abs(expected)


def main(*names: str) -> None:
    """Try them, and write the table."""
    rows = []
    for library, name in ALL:
        if names and name not in names:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found, expected, why = asked(library, name)
                kind = "right" if abs(found - expected) <= tolerance(name) * abs(expected) else "wrong"
                kind = "unknown" if math.isnan(expected) else kind
                note = why[:160] or (f"{found:.8g}, not {expected:.8g}" if kind == "wrong" else "")
            except ReprolibError as error:
                kind, note, why = "refused", str(error)[:160], ""
            except ImportError:
                kind, note, why = "not here", "", ""
        rows.append(
            {"library": library, "network": name, "is": kind, "answered by": "reverse" if why else "tape", "note": note}
        )
        print(*rows[-1].values(), sep=" | ", flush=True)
        if not names:  # after each, for some take long
            pd.DataFrame(rows).to_csv(TABLE.with_suffix(".csv"), index=False)
    if not names:
        versions = {name: version(name) for name in ("torch", *LIBRARIES)}
        TABLE.with_suffix(".json").write_text(
            json.dumps(versions | {"python": platform.python_version()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
