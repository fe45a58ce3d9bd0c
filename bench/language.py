"""Language models of full size that read shapes of 2,048 tokens: the architectures of Qwen, random weights, bf16, four prompts at once.

    python bench/language.py [--device cuda] [--quick] [--out folder]

Times are medians of three after one; memory is the most that the step held, weights included. --quick takes two layers and 64 tokens, to see that it runs."""
import argparse, json, statistics
from pathlib import Path

import torch
from transformers import AutoConfig

from harness import gpu, machine, timed
from sdfvq.align import Aligned, AnswerLoss
from sdfvq.processor3d import collate_3d_text, small_processor
from sdfvq.vl import Qwen3VLWith3DBranch, add_lora, small_config
from sdfvq.vqvae import SparseSDFVQVAE, preset

BATCH, NEW = 4, 64
SIGHT = dict(qwen2_vl=dict(depth=32, embed_dim=1280, num_heads=16, mlp_ratio=4),
             qwen3_vl=dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, patch_size=16, deepstack_visual_indexes=[5, 11, 17]))
# From the config.json of each checkpoint
MODELS = {
    'Qwen2-VL-2B': ('qwen2_vl', dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                                     rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[16, 24, 24]))),
    'Qwen3-VL-2B': ('qwen3_vl', dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                                     rope_parameters=dict(rope_type='default', rope_theta=5e6, mrope_section=[24, 20, 20]))),
    'Qwen3-VL-4B': ('qwen3_vl', dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                                     rope_parameters=dict(rope_type='default', rope_theta=5e6, mrope_section=[24, 20, 20])))}

def config_of(kind, text, processor, quick):
    c = small_config(processor, kind).to_dict()
    sight = SIGHT[kind] | ({'hidden_size': text['hidden_size']} if kind == 'qwen2_vl' else {'out_hidden_size': text['hidden_size']})
    text = {k: v for k, v in c['text_config'].items() if k not in ('layer_types', 'loss_type')} | dict(vocab_size=151_936, max_position_embeddings=32_768) | text
    if quick: text |= dict(num_hidden_layers=2, vocab_size=2000); sight |= dict(depth=2, **({} if kind == 'qwen2_vl' else dict(deepstack_visual_indexes=[1])))
    ids = {k: v for k, v in c.items() if k.endswith('_token_id')}
    return AutoConfig.for_model(kind, text_config=text, vision_config=c['vision_config'] | sight, tie_word_embeddings=True, **ids)

def build(name, quick):
    "Model in bf16, and a batch to learn from and one to answer."
    kind, text = MODELS[name]
    tokens = 64 if quick else 2048
    torch.manual_seed(0)
    vae, processor = SparseSDFVQVAE(preset('small64')), small_processor(['What is this?', 'a chair'], tokens)
    places = torch.cartesian_prod(*[torch.arange(16)] * 3)[torch.randperm(16**3)[:tokens]]
    items = [dict(shape=(torch.randn(tokens, vae.config.code_dim), places), question='What is this?', answer='a chair') for _ in range(BATCH)]
    vl = Qwen3VLWith3DBranch.begin(config_of(kind, text, processor, quick), vae, processor).to(torch.bfloat16)
    return vl, collate_3d_text(items, processor), collate_3d_text(items, processor, False)

def measure(vl, learn, ask, device):
    "Milliseconds and GB of each step; training as `align` does it, with logits of the answers alone."
    vl, learn, ask = vl.to(device), *({k: v.to(device) for k, v in batch.items()} for batch in (learn, ask))
    cuda, rows, loss = torch.device(device).type == 'cuda', {}, AnswerLoss()
    def row(what, f):
        f(None)
        if cuda: torch.cuda.reset_peak_memory_stats()
        took = statistics.median(timed(f, None, 'cuda' if cuda else 'cpu')[0] for _ in range(3))
        rows[what] = took * 1e3, torch.cuda.max_memory_allocated() / 1e9 if cuda else float('nan')
    with torch.no_grad():
        row('forward', lambda _: loss(Aligned(vl)(learn), learn))
        row(f'generate {NEW}', lambda _: vl.generate(**ask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False))
    model = Aligned(add_lora(vl.requires_grad_(False).train(), 8))
    def backward(_):
        model.zero_grad()
        loss(model(learn), learn).backward()
    row('forward and backward, LoRA 8', backward)
    vl.gradient_checkpointing_enable(dict(use_reentrant=False))
    row('the same, activations computed again', backward)
    return rows

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu'); p.add_argument('--quick', action='store_true')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results')
    a = p.parse_args()
    lines, facts = ['| model | weights | tokens a prompt | step | ms | GB at the peak |', '|---|---|---|---|---|---|'], {}
    for name in MODELS:
        vl, *batches = build(name, a.quick)
        weights, length = sum(p.numel() for p in vl.model.language_model.parameters()), batches[0]['input_ids'].shape[1]
        rows = facts[name] = measure(vl, *batches, a.device)
        lines += [f'| {name} | {weights / 1e9:.2f} G | {length:,} | {what} | {ms:,.0f} | {gb:.1f} |' for what, (ms, gb) in rows.items()]
        del vl
        if a.device != 'cpu': torch.cuda.empty_cache()
        print('\n'.join(lines), flush=True)
    said = gpu() if a.device != 'cpu' else machine({})
    a.out.mkdir(parents=True, exist_ok=True)
    text = f"# Language models of full size\n\n{said['device']}, {said['date']}; batch {BATCH}, random weights, bf16.\n\n" + '\n'.join(lines) + '\n'
    (a.out/'language.md').write_text(text, encoding='utf-8')
    (a.out/'language.json').write_text(json.dumps(dict(machine=said, rows=facts), indent=1) + '\n', encoding='utf-8')
