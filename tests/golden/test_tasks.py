"""Scores the samples that `flashmorph-dist evaluate --answers` wrote with transformers instead, and compares.

    test_tasks.py MODEL_DIR ANSWERS.jsonl [--device cuda] [--dtype bfloat16]      lines of that model, already there
    test_tasks.py --program build/flashmorph-dist --hybrid random_hybrid --mpirun mpirun   the suite's small models

Every sample is answered anew: generate() without sampling, or for `passkey-forced` the likeliest token behind the right
words. The scoring is written down here once more. Exit code 1 when a written token or a score differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def open_model(folder, dtype, device):
    remote = any(Path(folder).glob("*.py"))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote, dtype=dtype).to(device).eval()
    return model, tokenizer


@torch.no_grad()
def written_by(model, tokenizer, line):
    prompt = torch.tensor([line["prompt_tokens"]], device=model.device)
    if line["task"].endswith("-forced"):
        words = torch.tensor([line["words"]], device=model.device)
        logits = model(torch.cat([prompt, words], 1)).logits[0]
        return logits[prompt.shape[1] - 1 : -1].argmax(-1).tolist()
    whole = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=line["most"],
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return whole[0, prompt.shape[1] :].tolist()


def score(tokenizer, line, written):
    if "words" in line:
        hits = [i < len(written) and written[i] == word for i, word in enumerate(line["words"])]
    else:
        text = tokenizer.decode(written).lower()
        hits = [reference.lower() in text for reference in line["references"]]
    return sum(hits) / len(hits)


def compare(folder, answers, dtype, device):
    """What differs, sample by sample; prints both mean scores of each task and length."""
    model, tokenizer = open_model(folder, dtype, device)
    means, faults = defaultdict(list), []
    for text in Path(answers).read_text().splitlines():
        line = json.loads(text)
        written = written_by(model, tokenizer, line)
        theirs = score(tokenizer, line, written)
        means[line["task"], line["length"]].append((line["score"], theirs))
        where = f"{line['task']} {line['length']}, sample {line['sample']}"
        if abs(theirs - line["score"]) > 1e-9:
            faults.append(f"{where}: score {line['score']}, transformers {theirs}")
        if written != line["written_tokens"]:
            faults.append(f"{where}: wrote {line['written_tokens'][:8]}..., transformers {written[:8]}...")
    for (task, length), both in means.items():
        ours, theirs = (100 * sum(pair[side] for pair in both) / len(both) for side in (0, 1))
        print(f"{task:16} {length:6} {len(both):4} samples  {ours:6.1f}  transformers {theirs:6.1f}")
    return faults


TEACHER = "tests/data/passkey-teacher"


def made_here(arguments):
    """Faults of the passkey teacher and of a random hybrid of it, on one rank and on meshes of two."""
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        hybrid, answers = Path(folder) / "flashmorph", Path(folder) / "answers.jsonl"
        subprocess.run([arguments.hybrid, TEACHER, "gla", folder], check=True)
        tasks = "values,frequent-words,passkey,passkey-forced"
        asked = [TEACHER, str(hybrid), "--lengths", "512", "--samples", "2", "--tasks", tasks]
        whole = measured(arguments, folder, [], asked + ["--answers", str(answers)])
        samples = [json.loads(line) for line in answers.open()]
        for name, score in whole.items():
            own = [line["score"] for line in samples if (line["model"], line["task"], line["length"]) == name]
            if abs(sum(own) / len(own) - score) > 1e-9:
                faults.append(f"{name} is {score}, its samples' scores {own}")
        for model in TEACHER, str(hybrid):
            own = Path(folder) / "own.jsonl"
            own.write_text("".join(line for line in answers.open() if json.loads(line)["model"] == model))
            faults += compare(model, own, torch.float32, "cpu")
        few = asked[:-1] + ["frequent-words,passkey,passkey-forced"]
        for mesh in [], ["--pipeline", "2"], ["--tensor", "2"]:
            shared = measured(arguments, folder, [arguments.mpirun, "--oversubscribe", "-np", "2"], few + mesh)
            for name, score in shared.items():
                if score != whole[name]:
                    faults.append(f"two ranks, {mesh}: {name} is {score}, {whole[name]} on one")
        faults += in_a_chat(arguments, folder)
        faults += refusals(arguments, folder)
        subprocess.run(
            [arguments.program, "bench", TEACHER, "--hybrid", "lightning:3", "--lengths", "256", "--tokens", "4"], check=True
        )
    return faults


CHAT = (  # ChatML with a system message of its own, as instruct models have it
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def in_a_chat(arguments, folder):
    """The passkey's prompt is what the chat template makes of its message, and the answer's beginning."""
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)

    def rendered(message):
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], chat_template=CHAT, add_generation_prompt=True, tokenize=False
        )

    chat, answers, faults = Path(folder) / "chat.txt", Path(folder) / "chat.jsonl", []
    chat.write_text(rendered("{}"))
    asked = [TEACHER, "--tasks", "passkey", "--lengths", "512", "--samples", "2", "--chat", str(chat)]
    measured(arguments, folder, [], [*asked, "--answers", str(answers)])
    before, after = rendered("{}").split("{}")
    for line in map(json.loads, answers.open()):
        prompt = tokenizer.decode(line["prompt_tokens"])
        message = prompt[len(before) :].removesuffix(after + "Passkey:")
        if prompt != rendered(message) + "Passkey:" or not message.endswith(" passkey to the vault?"):
            faults.append(f"the chat's prompt is {prompt!r}")
        if len(line["prompt_tokens"]) > 512 - line["most"]:
            faults.append(f"the chat's prompt has {len(line['prompt_tokens'])} tokens")
    return faults + compare(TEACHER, answers, torch.float32, "cpu")


def measured(arguments, folder, launcher, asked):
    """Scores by model, task and length; asked twice, the second time nothing is left to do."""
    out = Path(folder) / "out.json"
    out.unlink(missing_ok=True)
    command = [*launcher, arguments.program, "evaluate", *asked, "--out", str(out)]
    subprocess.run(command, check=True)
    first = json.loads(out.read_text())
    if not launcher:
        subprocess.run(command, check=True)
        assert json.loads(out.read_text()) == first
    return {
        (model["name"], task["task"], int(task["length"])): task["score"]
        for model in first["measurements"]
        for task in model["tasks"]
    }


def refusals(arguments, folder):
    """Bad input is one line and exit code 2."""
    choices = Path(folder) / "choices.jsonl"
    choices.write_text('{"context": "a", "choices": [" b", " c"], "answer": 5}\n')
    faults = []
    for asked, expected in [
        (["tests/data/text"], "config.json"),
        ([TEACHER, "--tasks", "needles"], "needle-noise"),
        ([TEACHER, "--lengths", "1024,8192"], "beyond the 4096 positions"),
        ([TEACHER, "--lengths", "1k"], "expected numbers of tokens"),
        ([TEACHER, "--tasks", "values", "--lengths", "140"], "values: a length of 140 tokens is too short"),
        ([TEACHER, "--choices", str(choices)], "choices.jsonl: line 1"),
        ([TEACHER, "--tasks", "passkey", "--lengths", "512", "--chat", str(choices)], "one {} where the message stands"),
        ([TEACHER, "--perplexity", "nowhere.txt"], "nowhere.txt"),
        ([TEACHER, "--tensor", "3"], "tensor"),
    ]:
        done = subprocess.run([arguments.program, "evaluate", *asked], capture_output=True, text=True)
        if done.returncode != 2 or expected not in done.stderr or done.stderr.count("\n") != 1:
            faults.append(f"evaluate {' '.join(asked)}: exit code {done.returncode}, said {done.stderr!r}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("answers", nargs="?")
    parser.add_argument("--program")
    parser.add_argument("--hybrid")
    parser.add_argument("--mpirun")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    if arguments.program:
        faults = made_here(arguments)
    else:
        faults = compare(arguments.model, arguments.answers, getattr(torch, arguments.dtype), arguments.device)
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
