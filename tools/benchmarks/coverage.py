"""Which of transformers' causal language models the meter measures: every class against its own attention maps.

Each class of ``MODEL_FOR_CAUSAL_LM_MAPPING`` is built with a tiny random configuration and measured twice on the same
tokens: by :func:`nfcore.head_entropy`, and from the attention maps that the class returns with eager attention.

``right``    the two agree to 1e-5 nats in every head
``refused``  the meter says in one line that it does not measure this class
``wrong``    they differ, or have not the same number of layers
``crashed``  the meter, or a process that measures, ends with anything else
``no maps``  the class returns no maps, so there is nothing to compare with
``not built``  no tiny configuration of the class could be made to run

Each class has a process of its own, with a limit of time and of memory.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import sys
import time
import warnings
from typing import Any

from tools.benchmarks.common import Options, Section, Target


LIMIT_SECONDS = 300
LIMIT_BYTES = 4 * 2**30
TOLERANCE = 1e-5  # nats
LENGTH = 24  # tokens; longer than the windows and chunks below
FEW = ("gpt2", "llama", "mistral", "gemma2", "gpt_oss", "lfm2", "diffllama", "bloom", "bert")  # of --small

# Whatever of these a configuration has is set.
TINY: dict[str, Any] = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    sliding_window=8,
    attention_chunk_size=8,
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    n_group=1,
    topk_group=1,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


MLA: dict[str, Any] = dict(  # multi-head latent attention, where a configuration has it
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=16,
    num_key_value_heads=4,
    head_dim=8,
    index_n_heads=2,
    index_head_dim=16,
    index_topk=8,
)
MAMBA: dict[str, Any] = dict(mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1)
SEQ2SEQ: dict[str, Any] = dict(
    d_model=64,
    encoder_layers=2,
    decoder_layers=4,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
)
TWICE: dict[str, Any] = dict(layer_types=["linear_attention", "full_attention"] * 2)
DECODER: dict[str, Any] = dict(is_decoder=True)

# What the fields above do not make a working configuration of.
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"), DECODER),
    **dict.fromkeys(("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"), DECODER),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod"), DECODER),
    "bamba": dict(attn_layer_indices=[1, 3], **MAMBA),
    "bailing_hybrid": dict(layer_group_size=2, n_group=1, topk_group=1),
    "codegen": dict(rotary_dim=8),
    "cohere_compass_text": dict(
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            name: dict(rope_type="default", rope_theta=1e4) for name in ("sliding_attention", "full_attention")
        },
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4), ffn_config=dict(ffn_hidden_size=64, moe_num_experts=4)
    ),
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    "falcon_h1": dict(mamba_d_ssm=128, **MAMBA),
    "gemma3n_text": dict(
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=16,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gpt_neo": dict(num_layers=4, attention_types=[[["global", "local"], 2]], window_size=8),
    "gptj": dict(rotary_dim=8),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"] * 2, shared_intermediate_size=64, **MAMBA),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=8, use_mamba_kernels=False),
    "kimi_linear": dict(**TWICE, linear_head_dim=16, linear_num_heads=4),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "longcat_flash": dict(num_layers=2, zero_expert_num=2, expert_ffn_hidden_size=32),
    "mamba2": dict(num_heads=8, head_dim=16, hidden_size=64, expand=2, n_groups=1, state_size=16),
}


def tiny(config_class: Any, kind: str = "") -> Any:
    """A small configuration: the fields of ``TINY`` and the like that the class has, in its parts too."""
    names: set[str] = (
        {f.name for f in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else set()
    )
    names |= set(getattr(config_class, "attribute_map", {}))
    values = TINY
    for sign, more in (("kv_lora_rank", MLA), ("decoder_ffn_dim", SEQ2SEQ)):
        if sign in names:
            values = {**values, **more}
    parts = {
        name: tiny(part).to_dict()
        for name, part in getattr(config_class, "sub_configs", {}).items()
        if dataclasses.is_dataclass(part)
    }
    return config_class(**{**{k: v for k, v in values.items() if k in names}, **parts, **MORE.get(kind, {})})


# --- in the process of a class ----------------------------------------------------------------------------------


def tokens() -> Any:
    import torch

    return torch.randint(3, 100, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def build(config_class: Any, model_class: Any, kind: str) -> Any:
    """A tiny model of the class that runs."""
    import torch

    torch.manual_seed(0)
    config = tiny(config_class, kind)
    if not isinstance(config, model_class.config_class):  # of a model that sees images too
        config = config.get_text_config(decoder=True)
    model = model_class(config).eval()
    sharpen(model)
    model(input_ids=tokens())
    return model


def compare(model: Any) -> dict[str, Any]:
    """The outcome, with how far the entropies are from those of the maps, or with a reason."""
    from nfcore.meter import attention_statistics, head_entropy
    from nfcore.settings import SettingsError

    row: dict[str, Any] = {"implementation": model.config._attn_implementation}
    try:
        ours = head_entropy(model, tokens())
        layers = attention_statistics(model, tokens())["layer"]
    except SettingsError as error:
        return {"outcome": "refused", **row, "reason": said(error)}
    except Exception as error:
        return {"outcome": "crashed", **row, "reason": said(error)}
    row |= {"layers": layers.tolist(), "heads": ours.shape[1]}
    try:
        theirs = from_maps(model)
    except Exception as error:
        return {"outcome": "no maps", **row, "reason": said(error)}
    if theirs.shape != ours.shape:
        return {"outcome": "wrong", **row, "reason": f"rows {tuple(ours.shape)}, maps {tuple(theirs.shape)}"}
    largest = float((ours.double() - theirs).abs().nan_to_num(0).max())
    return {"outcome": "right" if largest <= TOLERANCE else "wrong", **row, "largest_error_nats": largest}


def sharpen(model: Any) -> None:
    """Matrices large enough that attention is far from uniform."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "embed" not in name:
                p.normal_(0, 0.15)
            elif "sink" in name:
                p.normal_(0, 1)


def from_maps(model: Any) -> Any:
    """Head entropies (L, H) in float64 from the maps of eager attention; a layer with fewer heads ends in NaN."""
    import torch

    with torch.no_grad():
        model.set_attn_implementation("eager")
        maps = model(input_ids=tokens(), output_attentions=True).attentions
    maps = [p.double() for p in maps if p is not None and p.shape[-2] == LENGTH]  # others are linear attention's
    heads = [torch.special.entr(p).sum(-1).mean((0, 2)) for p in maps]
    return torch.nn.utils.rnn.pad_sequence(heads, batch_first=True, padding_value=torch.nan)


def said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


# --- the sweep --------------------------------------------------------------------------------------------------


def isolated(*of_class: Any) -> dict[str, Any]:
    """The row of a class from a fork of this process, or how that process ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        os.nice(5)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        try:
            model = build(*of_class)
        except Exception as error:
            sender.send({"outcome": "not built", "reason": said(error)})
            return
        sender.send(None)
        sender.send(compare(model))

    process = context.Process(target=work)
    process.start()
    sender.close()
    outcome, end = "not built", time.monotonic() + LIMIT_SECONDS
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            if row := receiver.recv():
                return row
            outcome = "crashed"  # until it says more
        return {"outcome": outcome, "reason": f"took more than {LIMIT_SECONDS} s"}
    except EOFError:
        process.join()
        return {"outcome": outcome, "reason": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def run(options: Options) -> Section:
    import torch
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    import nfcore.meter  # noqa: F401  here, so that it is not imported again for each class

    torch.set_num_threads(1)
    section = Section()
    for kind in sorted(NAMES):
        if options.small and kind not in FEW:
            continue
        config_class: Any = CONFIG_MAPPING[kind]
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        row = isolated(config_class, model_class, kind)
        section.rows.append({"kind": "class", "model_type": kind, "class": model_class.__name__, **row})
        print(f"  {kind}: {row['outcome']} {row.get('reason', '')}", file=sys.stderr, flush=True)
    section.targets = targets(section.rows)
    return section


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    count = {name: sum(row["outcome"] == name for row in rows) for name in ("right", "wrong", "crashed")}
    return [
        Target("causal-LM classes measured right to 1e-5 nats", count["right"], 130, "", at_least=True),
        Target("causal-LM classes measured wrong", count["wrong"], 0, "", at_least=False),
        Target("causal-LM classes at which the meter crashed", count["crashed"], 0, "", at_least=False),
    ]
