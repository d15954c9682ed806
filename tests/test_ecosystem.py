"""Our model under the tools around transformers: adapters, hooks, offloading, quantisation, Trainer, export, pipelines.

Where peft or lm_eval are not installed their tests are skipped.
"""

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithFlattening,
    DynamicCache,
    PreTrainedTokenizerFast,
    StaticCache,
    Trainer,
    TrainingArguments,
    pipeline,
)

from nfcore import NormFreeConfig, SettingsError, to_gpt2, train
from nfcore.tokens import prepare
from tests.test_model import VOCAB, ours, reloaded, spread, tokens


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- every submodule is called, none is read --------------------------------------------------------------------


class Opaque(nn.Module):
    """Calls what it stands for, and shows nothing of it."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.call = [inside].__getitem__

    def forward(self, *args: Any) -> Any:
        (x,) = args
        return self.call(0)(x)


@pytest.mark.parametrize("biases", ["paper", "all", "none"])
@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_every_module_is_called_and_may_be_replaced_by_one_that_only_answers_calls(family, biases):
    network, ids = spread(ours(family, biases=biases, activation="learnable_leaky_relu")), tokens()
    leaves = {name: module for name, module in network.named_modules() if not list(module.children())}
    called: list[str] = []
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    expected = network(ids).logits
    assert sorted(called) == sorted(leaves)
    for name, module in leaves.items():
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Opaque(module))
    close(network(ids).logits, expected)


def test_a_parametrised_bias_and_functional_calls_are_in_the_result():
    network, ids = spread(ours(biases="all", attn_implementation="eager")), tokens(3)
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        options = dict(labels=row[None], use_cache=False)
        return torch.func.functional_call(network, weights, (row[None],), options).loss

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, ids)
    network(ids[1:2], labels=ids[1:2]).loss.backward()
    for name, p in network.named_parameters():
        close(each[name][1], p.grad)
    half, twin = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    nn.utils.parametrize.register_parametrization(half.blocks[0].attention, "qkv_bias", Half())
    twin.blocks[0].attention.qkv_bias.data /= 2
    close(half(ids).logits, twin(ids).logits, 0)


@pytest.mark.parametrize("biases", ["paper", "none"])
def test_a_bias_given_to_a_layer_without_one_is_in_the_result(biases):
    network, ids = spread(ours(biases=biases)), tokens()
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and module.bias is None:
            before = network(ids).logits
            module.bias = nn.Parameter(torch.randn(module.out_features))
            assert (network(ids).logits - before).abs().max() > 1e-3, name
    expected = network.train()(ids, labels=ids)
    network.lm_head.multiple = 64
    close(network(ids).logits, expected.logits)
    network.chunked_loss = True
    close(network(ids, labels=ids).loss, expected.loss)


class Passing(nn.Module):
    """A block that does nothing."""

    def forward(self, x: Tensor, *args: Any) -> tuple[Tensor, None]:
        return x, None


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_blocks_keep_their_activations_when_others_are_removed(tmp_path):
    network, ids = spread(ours(num_hidden_layers=3, activation="learnable_leaky_relu")), tokens()
    short = copy.deepcopy(network)
    short.blocks = nn.ModuleList([short.blocks[0], short.blocks[2]])
    network.blocks[1] = Passing()
    close(short(ids, use_cache=False).logits, network(ids, use_cache=False).logits, 0)
    with pytest.raises(SettingsError, match=r"config.num_hidden_layers: 3 is not .* has, 2"):
        short.save_pretrained(tmp_path)
    short.config.num_hidden_layers = 2
    with pytest.raises(SettingsError, match=r"blocks: numbered \[0, 2\]"):
        short.save_pretrained(tmp_path)
    short.activations, short.blocks[1].number = nn.ModuleList([network.activations[0], network.activations[2]]), 1
    close(reloaded(short, tmp_path)(ids).logits, short(ids, use_cache=False).logits, 0)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
def test_dynamic_quantisation():
    network, ids = spread(ours(biases="all"), 0.1), tokens()
    small = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(small.blocks[0].ffn.up).__module__
    assert type(small.blocks[0].attention.qkv) is type(network.blocks[0].attention.qkv)  # no nn.Linear, so it is left
    logits, exact = small(ids).logits, network(ids).logits
    assert 0 < (logits - exact).abs().max() < 0.3 * exact.std()


def test_offloading_changes_no_logits(tmp_path):
    network, ids = spread(ours()), tokens()
    expected = network(ids).logits
    network.save_pretrained(tmp_path)
    where = {name: "cpu" for name, _ in network.named_children() if name != "blocks"}
    where |= {"blocks.0": "cpu", "blocks.1": "disk"}
    options = dict(device_map=where, offload_folder=tmp_path / "offloaded")
    network = AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
    assert any(p.is_meta for p in network.parameters())
    close(network(ids).logits, expected)


@pytest.mark.filterwarnings("ignore")  # peft asks for what transformers renamed
def test_lora_on_all_linear_layers_trains_and_merges():
    peft = pytest.importorskip("peft")
    for family in ("gpt2", "pythia"):
        for dora in (False, True):
            options = dict(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)
            network = peft.get_peft_model(spread(ours(family)), peft.LoraConfig(**options))
            ids = tokens()
            optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.5)
            for _ in range(3):
                optimizer.zero_grad()
                network(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
            trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
            for part in ("attention.qkv", "attention.out", "ffn.up", "ffn.down"):
                assert any(part in name and "lora_A" in name for name in trained), part
            network.eval()
            before = network(input_ids=ids).logits
            close(network.merge_and_unload()(ids).logits, before, 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_prompt_tuning():
    peft = pytest.importorskip("peft")
    network = ours()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned, ids = peft.get_peft_model(network, config), tokens()
    mask = torch.ones_like(ids)
    tuned(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    assert tuned.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0
    prompt = tuned.prompt_encoder["default"].embedding.weight.detach().expand(2, -1, -1)
    whole = network(inputs_embeds=torch.cat([prompt, network.embed(ids)], 1)).logits
    close(tuned(input_ids=ids, attention_mask=mask).logits, whole)
    made = tuned.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert torch.equal(made[:, -1], whole[:, -1].argmax(-1))


# --- arguments are honoured or refused --------------------------------------------------------------------------


def test_a_misspelt_field_is_refused_and_what_other_tools_add_to_a_file_is_kept(tmp_path):
    with pytest.raises(ValueError, match="model: unknown setting 'norms'"):
        ours(norms="none")
    for make in (NormFreeConfig, partial(AutoConfig.for_model, "normfree"), NormFreeConfig.from_dict):
        with pytest.raises(SettingsError, match=r"unknown setting 'activaton'; allowed: family, .* activation,"):
            make(**{"config_dict": {"activaton": 1}} if make == NormFreeConfig.from_dict else {"activaton": "relu"})
    config = NormFreeConfig(dtype="float32", num_labels=3, attn_implementation="eager", output_attentions=True)
    config.added = "by another tool"
    config.save_pretrained(tmp_path)
    for again in (AutoConfig.from_pretrained(tmp_path), NormFreeConfig(**config.to_dict())):
        assert again.added == config.added
    assert config.bos_token_id is config.eos_token_id is config.pad_token_id is None
    network = ours(eos_token_id=3, output_hidden_states=True)
    assert network.config.eos_token_id == network.generation_config.eos_token_id == 3


ROWS = "must be a tensor of shape \\(B, T\\)$"


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (lambda ids: {"attention_masks": ids}, TypeError, "unexpected keyword argument 'attention_masks'"),
        (lambda ids: {"token_type_ids": ids}, TypeError, "unexpected keyword argument 'token_type_ids'"),
        (lambda ids: {"input_ids": None}, ValueError, "either input_ids or inputs_embeds"),
        (lambda ids: {"inputs_embeds": torch.ones(2, 16, 32)}, ValueError, "either input_ids or inputs_embeds"),
        (
            lambda ids: dict(past_key_values=DynamicCache(), cache=DynamicCache()),
            ValueError,
            "past_key_values or cache",
        ),
        (lambda ids: {"past_key_values": ((ids, ids),)}, ValueError, "past_key_values: tuples are no longer a cache"),
        (lambda ids: {"input_ids": [[1, 2]]}, SettingsError, f"^input_ids: list {ROWS}"),
        (lambda ids: {"input_ids": ids[0]}, SettingsError, rf"^input_ids: shape \(16,\) {ROWS}"),
        (lambda ids: {"labels": ids.numpy()}, SettingsError, f"^labels: ndarray {ROWS}"),
        (lambda ids: {"labels": ids[:, None]}, SettingsError, rf"^labels: shape \(2, 1, 16\) {ROWS}"),
        (lambda ids: {"labels": ids[:, :10]}, SettingsError, r"labels: shape .* is not that of the logits"),
        (
            lambda ids: {"labels": ids, "logits_to_keep": 4},
            SettingsError,
            r"labels: shape .* is not that of the logits",
        ),
        (lambda ids: {"attention_mask": ids.tolist()}, SettingsError, "^attention_mask: list must be a tensor$"),
        *(
            (
                lambda ids, shape=shape: {"attention_mask": torch.ones(shape)},
                ValueError,
                "mask: shape .* does not cover",
            )
            for shape in [(2, 10), (2, 20), (3, 16), (16,), (2, 16, 16), (2, 1, 16, 15), (2, 1, 15, 16), (3, 1, 16, 16)]
        ),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_arguments_are_honoured_or_refused(given, error, said, chunked):
    network, ids = ours().train(), tokens()
    network.chunked_loss = chunked
    with pytest.raises(error, match=said):
        network(**{"input_ids": ids, **given(ids)})


@pytest.mark.parametrize("chunked", [False, True])
def test_embeddings_are_inputs_and_labels_go_with_the_logits_that_are_kept(chunked):
    network, ids = ours().train(), tokens()
    close(network(inputs_embeds=network.embed(ids)).logits, network(ids).logits, 0)
    network.chunked_loss = chunked
    kept = network(ids, labels=ids[:, -4:], logits_to_keep=4).loss
    close(kept, network(ids, labels=F.pad(ids[:, -3:], (13, 0), value=-100)).loss)
    with pytest.raises(ValueError, match="attention_masks"):
        network.generate(ids, max_new_tokens=1, attention_masks=ids)


def test_what_the_config_asks_for_is_given():
    network, ids = ours(output_hidden_states=True, attn_implementation="eager"), tokens()
    network.config.output_attentions = True
    out = network(ids)
    assert (len(out.hidden_states), len(out.attentions)) == (3, 2)
    close(network.lm_head(out.hidden_states[-1]), out.logits, 0)
    plain = network(ids, output_hidden_states=False, output_attentions=False)
    assert plain.hidden_states is plain.attentions is None
    network.config.return_dict = False
    assert isinstance(network(ids), tuple)
    network.config.use_cache = False
    assert len(network(ids, output_hidden_states=False, output_attentions=False)) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_the_loss_of_a_part_is_its_sum_over_the_items_of_the_whole(chunked):
    network, ids = ours().train(), tokens(4)
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    whole = network(ids, labels=labels).loss
    network.chunked_loss = chunked
    items = (labels[:, 1:] != -100).sum()
    for count in (items, int(items)):
        parts = [network(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(4)]
        close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_left_shifts_nothing(family, attention):
    network, ids = spread(ours(family)), tokens(1, 9)
    network.set_attn_implementation(attention)
    expected = network(ids).logits
    padded, mask = F.pad(ids, (4, 0)), F.pad(torch.ones_like(ids), (4, 0))
    close(network(padded, attention_mask=mask).logits[:, 4:], expected)
    for shown in (mask.bool(), mask / 2, 3 * mask):  # whatever is not zero, as in GPT-2; packing tools number sequences
        close(network(padded, attention_mask=shown).logits[:, 4:], expected)
    first = network(padded[:, :10], attention_mask=mask[:, :10], use_cache=True)
    rest = network(padded[:, 10:], attention_mask=mask, past_key_values=first[-1])
    close(rest.logits, expected[:, 6:])


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_a_cache_goes_by_both_of_its_names_and_of_either_kind(family):
    network, ids = spread(ours(family)), tokens(2, 12)
    expected = network(ids).logits[:, 7:]
    for name in ("past_key_values", "cache"):
        past = network(ids[:, :7])[-1]  # a model in eval mode keeps one, as others do
        close(network(ids[:, 7:], **{name: past}).logits, expected)
        past = StaticCache(config=network.config, max_cache_len=16)
        network(ids[:, :7], **{name: past})
        close(network(ids[:, 7:], **{name: past}).logits, expected)


def test_sequences_packed_into_one_row_do_not_see_each_other():
    network, parts = spread(ours()), [tokens(1, n)[0] for n in (5, 3, 6)]
    batch = DataCollatorWithFlattening()([{"input_ids": p.tolist()} for p in parts])
    logits = network(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    close(logits, torch.cat([network(p[None]).logits[0] for p in parts]))


# --- what is saved is what there is -----------------------------------------------------------------------------


def test_a_head_untied_or_tied_after_construction_survives_saving(tmp_path):
    ids, untied = tokens(), ours()
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = nn.Parameter(untied.embed.weight.detach() + 1.0)
    only_weight = ours()  # the config says tied all along
    only_weight.lm_head.weight = nn.Parameter(only_weight.embed.weight.detach() + 1.0)
    tied = ours(tie_word_embeddings=False)
    tied.lm_head.weight = tied.embed.weight
    shared = ours()
    shared.load_state_dict(ours().state_dict(), assign=True)  # two parameters with the same memory
    for i, network in enumerate((untied, only_weight, tied, shared)):
        again, one = reloaded(network, tmp_path / str(i)), network in (tied, shared)
        close(again(ids).logits, network(ids).logits, 0)
        assert (again.lm_head.weight is again.embed.weight) == one == again.config.tie_word_embeddings
    untied.lm_head = nn.Sequential(untied.lm_head)  # has no weight of its own
    untied.save_pretrained(tmp_path / "sequential")


CHANGED = dict(activation="relu", norm="none", final_norm="rmsnorm", norm_eps=1e-3, num_attention_heads=4, biases="all")
CHANGED |= dict(negative_slope=0.3, activation_scale=3.0, qk_norm=True, family="pythia", embd_pdrop=0.5, hidden_size=64)
CHANGED |= dict(vocab_size=50, max_position_embeddings=64, intermediate_size=64, slope_sharing="shared")


@pytest.mark.parametrize("name", CHANGED)
def test_a_config_that_no_longer_describes_the_model_is_not_saved(name, tmp_path):
    network = ours()
    before = getattr(network.config, name)
    setattr(network.config, name, CHANGED[name])
    for write in (lambda: network.save_pretrained(tmp_path), lambda: to_gpt2(network)):
        with pytest.raises(SettingsError, match=rf"config\.{name}: {CHANGED[name]!r} is not .* has, {before!r};"):
            write()
    assert not [*tmp_path.iterdir()]


def test_a_config_changed_in_place_or_before_the_model_is_built_is_checked(tmp_path):
    network = ours(attention_scales=[1.0, 2.0])
    network.config.attention_scales[1] = 3.0
    with pytest.raises(SettingsError, match=r"config\.attention_scales: \[1.0, 3.0\] is not .* has, \[1.0, 2.0\]"):
        network.save_pretrained(tmp_path)
    network = ours(attention_scales=[1.0, 2.0])
    network.blocks[0], network.blocks[1] = network.blocks[1], network.blocks[0]
    with pytest.raises(SettingsError, match=r"config\.attention_scales: \[1.0, 2.0\] is not .* has, \[2.0, 1.0\]"):
        network.save_pretrained(tmp_path)
    network.config.attention_scales, ids = [2.0, 1.0], tokens()
    close(reloaded(network, tmp_path)(ids).logits, network(ids).logits, 0)
    config = ours().config
    config.norm = "batchnorm"
    with pytest.raises(SettingsError, match=r"model.norm: 'batchnorm' is not one of layernorm"):
        type(network)(config)


def test_fields_that_change_no_computation_or_are_read_from_the_config_are_saved(tmp_path):
    network, ids = spread(ours("pythia")), tokens()
    changes = dict(rotary_base=500.0, rotary_fraction=0.5, residual_dtype="bfloat16", init="width", eos_token_id=3)
    for name, value in (changes | dict(max_position_embeddings=64, use_cache=False, ffn_gain=2.0)).items():
        setattr(network.config, name, value)
    network.set_attn_implementation("eager")
    again = reloaded(network, tmp_path)
    again.set_attn_implementation("eager")
    close(again(ids).logits, network(ids).logits, 0)
    assert (again.config.eos_token_id, again.config.max_position_embeddings) == (3, 64)


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_a_larger_vocabulary_is_trained_and_saved(family, tmp_path):
    network, ids = ours(family).train(), tokens()
    network.lm_head.multiple = 16
    network.resize_token_embeddings(VOCAB + 7)
    ids[0, 0] = VOCAB + 3
    loss = network(ids, labels=ids).loss
    loss.backward()
    network.chunked_loss = True
    close(network(ids, labels=ids).loss, loss)
    assert network.lm_head.multiple == 16
    network.lm_head = nn.Sequential(network.lm_head)
    with pytest.raises(ValueError, match="chunked_loss: needs lm_head to be a Head, not Sequential"):
        network(ids, labels=ids)
    (network.lm_head,) = network.lm_head
    again = reloaded(network, tmp_path)
    close(again(ids).logits, network.eval()(ids).logits, 0)
    assert again.config.vocab_size == VOCAB + 7


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
def test_a_model_in_float64_computes_in_it(family):
    ids, streams = tokens(), []
    network, halves = spread(ours(family)).double(), ours(family, residual_dtype="bfloat16").double()
    single = copy.deepcopy(network).float()
    for m in (network, halves):
        m.blocks[1].register_forward_hook(lambda m, args, out: streams.append(out[0].dtype))
        assert m(ids).logits.dtype == torch.float64
    assert streams == [torch.float64, torch.bfloat16]
    error = (network(ids).logits - single(ids).logits).abs()
    assert 0 < error.max() < 1e-4


# --- Trainer, export, a run's folder ----------------------------------------------------------------------------


def trainer(folder: Path, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in tokens(16, 12)]
    options = dict(max_steps=6, learning_rate=1e-2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    options |= dict(per_device_train_batch_size=8, save_steps=3, seed=0, dataloader_pin_memory=False)
    args = TrainingArguments(output_dir=str(folder), **{**options, **changes})  # type: ignore[arg-type]
    return Trainer(ours(), args, train_dataset=rows, eval_dataset=rows)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")  # a new name in transformers 5.23
def test_the_plain_trainer_trains_accumulates_evaluates_and_resumes(tmp_path):
    losses = {}
    for name, changes in {
        "whole": {},
        "parts": dict(per_device_train_batch_size=2, gradient_accumulation_steps=4),
        "checkpointed": dict(gradient_checkpointing=True),
    }.items():
        made = trainer(tmp_path / name, **changes)
        made.train()
        losses[name] = [log["loss"] for log in made.state.log_history if "loss" in log]
        assert made.evaluate()["eval_loss"] < losses[name][0]
    assert losses["whole"][-1] < losses["whole"][0] - 0.1
    for name in ("parts", "checkpointed"):
        assert losses[name] == pytest.approx(losses["whole"], abs=2e-3)
    again = trainer(tmp_path / "whole")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    resumed = [log["loss"] for log in again.state.log_history if "loss" in log]
    assert resumed == pytest.approx(losses["whole"], abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "pythia"])
@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_gives_the_logits_at_any_length(family):
    network = spread(ours(family))
    length = torch.export.Dim("length", min=2, max=32)
    shapes = {"input_ids": {1: length}, "use_cache": None, "return_dict": None}
    arguments = dict(input_ids=tokens(2, 16), use_cache=False, return_dict=False)
    program = torch.export.export(network, (), arguments, dynamic_shapes=shapes).module()
    ids = tokens(2, 9)
    close(program(input_ids=ids, use_cache=False, return_dict=False)[0], network(ids).logits)


@pytest.fixture
def run(trained: Path) -> Path:
    return trained / "model"


@pytest.fixture
def loaded(run: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a run."""
    return AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)


def test_a_run_is_a_whole_hugging_face_folder(loaded):
    network, tokenizer = loaded
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|endoftext|>", 0, 0)
    assert tokenizer.model_max_length == network.config.max_position_embeddings
    for config in (network.config, network.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 0)
    text = "def loss(step):\n    return step * 2  ,\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert set(tokenizer(text)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_the_special_tokens_of_a_users_own_tokenizer_keep_their_roles(name, loaded, tiny, tmp_path):
    tokenizer = loaded[1].backend_tokenizer
    own = ("bos_token", "eos_token", "unk_token", "pad_token")
    ids = dict(zip(own, (5, 6, 7, 8), strict=True))
    roles = {role: tokenizer.id_to_token(number) for role, number in ids.items()}
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    plain = prepare(tiny(data={"tokenizer": str(tmp_path / name)}).data)
    assert plain.meta["special_tokens"] == {}
    for count in (4, 3):  # all, and without one that pads
        given = {role: roles[role] for role in own[:count]}
        PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **given).save_pretrained(tmp_path)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        experiment = tiny(data={"tokenizer": str(tmp_path / name)}, seed=count, training={"steps": 1})
        made = prepare(experiment.data)
        assert (made.hash, made.directory, made.meta["special_tokens"]) == (plain.hash, plain.directory, given)
        saved = train(experiment, quiet=True) / "model"
        found, network = AutoTokenizer.from_pretrained(saved), AutoModelForCausalLM.from_pretrained(saved)
        expected = ids if count == 4 else {**ids, "pad_token": 6}
        assert {role: getattr(found, f"{role}_id") for role in own} == expected
        for config in (network.config, network.generation_config):
            assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, expected["pad_token"])


def test_generation_stops_at_a_string(loaded):
    network, tokenizer = loaded
    given = tokenizer("def head(", return_tensors="pt")
    long = network.generate(**given, max_new_tokens=6, do_sample=False)
    text = tokenizer.decode(long[0, given["input_ids"].shape[1]])
    short = network.generate(**given, max_new_tokens=6, do_sample=False, stop_strings=[text], tokenizer=tokenizer)
    assert torch.equal(short, long[:, : given["input_ids"].shape[1] + 1])


def test_a_batched_pipeline_gives_what_single_prompts_give(run):
    texts = ["def head(", "def layer_norm(key):\n    return", "x"]
    generate = pipeline("text-generation", str(run), device="cpu")
    options = dict(max_new_tokens=6, do_sample=False, return_full_text=False)
    assert generate(texts, batch_size=3, **options) == [generate(text, **options) for text in texts]


def test_log_likelihoods_of_lm_eval_are_ours(run, loaded):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    network, tokenizer = loaded
    judge = HFLM(pretrained=str(run), device="cpu", batch_size=2)
    pairs = [("def head(", "key):"), ("", "return"), ("x = batch", " * 2\n")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (context, continuation), (found, _) in zip(pairs, judge.loglikelihood(requests), strict=True):
        whole = tokenizer(context + continuation)["input_ids"]
        ids = torch.tensor([[0, *whole]] if not context else [whole])
        count = len(tokenizer(continuation)["input_ids"])
        log_p = network(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        assert found == pytest.approx(log_p[-count:].sum().item(), abs=1e-5)
