"""Bad options of every command."""

from __future__ import annotations

from collections.abc import Iterator

from bad_inputs.case import Case, command

_ASK = ("eval", "pope", "--model", "toy", "--split", "test", "--n-images", "2")
_PAINT = ("--model", "painter", "-p", "a red circle", "-p", "a blue square", "--seeds", "1",
          "--with", "none")  # fmt: skip
_COMPARE = ("compare", *_PAINT)
_IMAGES = ("eval images", *_PAINT, "--steps", "1")
_HEADS = ("discover", "heads", *_PAINT[:-2], "--steps", "1")
_CLIP = ("animate", "--with", "none", "--steps", "1")
_EDIT = ("edit", "--model", "painter", "-p", "a red circle", "-e", "a white circle", "--steps", "1")
_EDITS = ("eval", "edits", "--with", "none", "--steps", "1", "--edits", "2")
_VIDEO = ("eval", "video", "--with", "none", "--steps", "1", "--clips", "2", "--frames", "2")
_PLACES = ("eval", "places", "--places", "2", "--steps", "1", "--kind", "regions")
_COMPOSE = ("compose", "--model", "painter", "-p", "a red circle", "--background", "file.txt",
            "--object", "file.txt")  # fmt: skip
_INTS = ("0", "-1", "1.5", "abc", "", "nan", "1e3", "9" * 5000)
_FLOATS = ("nan", "inf", "-inf", "abc", "", "1e999", "--", "1,5")
_WHERE = ("/proc/x/y", "/dev/null/x", "file.txt/x", "a\0b", "x" * 5000)
_OPTIONS: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    _ASK: {
        "--n-images": _INTS, "--limit": _INTS, "--batch-size": (*_INTS, "AUTO", "8,8", "auto "),
        "--max-new-tokens": (*_INTS, "999999999"), "--num-beams": _INTS,
        "--temperature": (*_FLOATS, "0", "-1"),
        "--top-p": (*_FLOATS, "0", "-0.1", "1.5"), "--top-k": (*_INTS, "-2"), "--seeds": _INTS,
        "--seed": ("-1", "1.5", "abc", ""), "--profile": ("none", "", "offical", "[/]"),
        "--split": ("tset", "", "train ", "[red]"), "--out": _WHERE,
        "--dtype": ("int8", "float33", "float8_e4m3fn", "", "complex64", "nn", "torch.float32"),
        "--device": ("gpu", "cuda", "cuda:99", "meta", "", "cpu:x", "mps", "xpu", "5"),
        "--device-map": ("gpu", "nowhere", "{}"),
        "--attn-implementation": ("nope", "flash_attention_2", "", "[/]"),
        "--data": ("no.json", "nobody/nothing", "/proc/x", "", "http://x"),
        "--model": ("", "sandbx", "nobody/nothing", "/no/such", ".", "file.txt", "a b c", "[/]"),
    },
    _COMPARE: {
        "--steps": (*_INTS, "1000000"), "--guidance": _FLOATS, "--cell": _INTS,
        "--size": ("", "0x0", "1x1", "512", "axb", "-8x8", "8x", "x8", "9x9", "64x64x64", "1e2x8",
                   "٣x٣", "9999999x9999999", "8 x8"),
        "--set": ("eta", "=1", "etta=1", "height=-8", "num_inference_steps=0", "eta=NaN",
                  "num_inference_steps=1.5", "guidance_scale=NaN", "guidance_scale=Infinity",
                  "clip_skip=99", "joint_attention_kwargs=5", "generator=1", "latents=1",
                  "prompt=x", "output_type=latent", "num_images_per_prompt=0", "width=abc",
                  "cross_attention_kwargs=5", "guidance_rescale=NaN", "timesteps=[]",
                  "callback_on_step_end=5", "callback_on_step_end_tensor_inputs=5"),
        "--seeds": ("", "0", "-1", "1,1", "many", "1,-2", "1.5", "1,", "9" * 30, "1" * 10),
        "--batch-size": _INTS, "--sweep": ("", "pag", "pag.scale", "pag.scale=", "=1", ".=",
                  "x.y=1", "pag.nope=1", "pag.scale=nan", "pag.scale=1,1", "pag.scale=abc",
                  "none.x=1"),
        "--out": ("grid.jpg", "grid", "/proc/x.png", "folder.png", "file.txt/g.png", "x" * 300
                  + ".png", ""), "--gif": (),
        "--dtype": ("int8", "nope", "float8_e4m3fn", ""), "--offload": ("disk", "model", ""),
        "--device": ("gpu", "cuda", "meta", "cuda:9"), "--variant": ("fp61", "../x"),
        "--model": ("painter-unett", "nobody/nothing", "", "toy", "file.txt", "sandbox"),
        "--prompts": ("no.txt", "file.txt"), "--negative": (),
    },
    _EDIT: {
        "--steps": _INTS, "--guidance": _FLOATS, "--cell": _INTS, "--seeds": ("", "0", "-1", "1,1"),
        "--image": ("no.png", "file.txt", "", "/proc/x.png"), "--mask": ("no.png", "file.txt", ""),
        "--words": ("", "hat", "[/]"), "--edit": ("a red circle", ""),
        "--with": ("consistedit:strength=2", "consistedit:rounds=0", "consistedit:words=[]",
                   "consistedit:region=left", "consistedit:source=no.safetensors", "pag:scale=x"),
        "--out": ("edit.jpg", "edit", "/proc/x.png", "file.txt/e.png", ""),
    },
    _EDITS: {
        "--edits": _INTS, "--kind": ("", "size"), "--pictures": ("", "real"), "--split": ("train",),
        "--batch-size": _INTS, "--steps": _INTS, "--seed": ("-1", "x"), "--out": _WHERE,
        "--with": ("consistedit:strength=2", "consistedit:mask=no.npy", "consistedit:words=hat"),
    },
    _IMAGES: {
        "--score": ("", "nope", "clip:", "clip:model", "clip:model=no-such-folder", "clip:nope=1",
                    "aesthetic", "aesthetic:head=no.safetensors", "aesthetic:head=no.pth",
                    "pickscore:model=no-folder", "hpsv2", "hpsv2:weights=no.pt", "lpips", "ssim",
                    "fid", "kid", "fid:references=nowhere", "clip:model=toy", "clip:model=painter",
                    "painting:x=1", "clip+painting", "[/]", "clip:model=", "clip:model=5"),
        "--references": ("nowhere", "file.txt", "empty"), "--out": _WHERE,
        "--guidance": _FLOATS, "--seeds": ("0", "1,1", "x"), "--n-prompts": _INTS,
        "--size": ("0x0", "9x9"), "--set": ("guidance_scale=NaN", "etta=1"), "--prompts": ("no",),
    },
    _HEADS: {
        "--objective": ("", "nope", "ssim", "fid", "clip:model=no", "painting:x=1"),
        "--rounds": _INTS[:5], "--picks": (*_INTS[:5], "100000"), "--scale": _FLOATS,
        "--u": (*_FLOATS, "2"),
        "--target": ("", "nope"), "--layer": ("-1", "99", "abc", "1.5"), "--out": _WHERE,
    },
    _CLIP: {
        "--clip": ("-1", "abc"), "--normals": ("nowhere", "file.txt", "empty"),
        "--flow": ("nowhere.npz", "file.txt", "empty", "folder.png"), "--estimate": ("nope", ""),
        "--seed": ("-1", "abc"), "--fps": ("0", "-1", *_FLOATS), "--cell": _INTS[:5],
        "--out": ("clip", "clip.avi", "/proc/x.gif", "folder.gif", "file.txt/c.gif"),
        "--guidance": _FLOATS, "--controlnet": ("nope", "nobody/nothing", "empty", "toy"),
        "--set": ("etta=1", "controlnet_conditioning_scale=NaN"), "--with": ("vhr", "pagg"),
    },
    _VIDEO: {
        "--split": ("", "tset"), "--clips": _INTS[:5], "--frames": (*_INTS[:5], "100000"),
        "--prompts": ("", "x"),
        "--grain": (*_FLOATS, "0", "-1"), "--flow": ("", "x"), "--guidance": _FLOATS,
        "--seed": ("-1", "abc"), "--controlnet": ("nowhere", "empty"), "--score": ("nope", "fid"),
        "--threads": ("0", "-1", "abc"), "--out": _WHERE,
    },
    _PLACES: {
        "--kind": ("", "sqaure"), "--split": ("", "train"), "--places": _INTS[:5],
        "--with": ("primecomposer", "regions@blank", "regions:overlap=both", "regions:base=2"),
        "--model": ("", "painter", "toy"), "--out": _WHERE, "--steps": _INTS[:5],
    },
    _COMPOSE: {
        "--background": ("", "none.png", "folder.png"), "--box": ("", "1", "0,0,2,1", "a,b,c,d"),
        "--object": ("", "none.png"), "--mask": ("none.png", "file.txt"),
        "--out": ("x.jpg", "/proc/x.png"), "--with": ("none@blank", "primecomposer:keep=2"),
    },
    ("ask", "--model", "toy", "-p", "is it red?"): {
        "--prompt": ("", " "), "--image": ("no.png", "file.txt", "empty", "", "a\0b"),
        "--with": ("", "vrh", "vhr@blank", "all", "pag"), "--model": ("", "painter", "nope"),
        "--max-new-tokens": (*_INTS, "999999999"), "--dtype": ("int8",), "--device": ("gpu",),
    },
    ("play", "--port", "0"): {
        "--host": ("", "203.0.113.1"), "--model": ("", "nope", "file.txt"),
        "--dtype": ("int8",), "--device": ("gpu",),
    },
    ("discover", "heads-lvlm", "adhh", "--model", "toy", "--split", "test", "--limit", "1"): {
        "--by": ("", "atribution"), "--top": _INTS, "--layer": ("-1", "99", "abc", ""),
        "--batch-size": _INTS, "--out": _WHERE, "--data": ("no.json", "file.txt", "empty"),
    },
    ("discover", "sinks", "--model", "toy"): {
        "--tau": (*_FLOATS, "-1", "1e9", "2"), "--model": ("", "painter", "nope"),
        "--dtype": ("int8",), "--device": ("gpu",),
    },
    ("serve", "--model", "toy"): {
        "--with": ("vrh", "", "pag", "vicrop", "none@blank", "vhr:layers=[99]", "ad-hh:heads=@x"),
        "--name": ("", " "), "--host": ("", "203.0.113.1", "no such host", "a\0b", "x" * 5000),
        "--port": ("-1", "65536", "abc", "", "nan"), "--max-batch": _INTS, "--max-waiting": _INTS,
        "--max-tokens": _INTS, "--max-request-mb": _INTS, "--max-megapixels": _INTS,
        "--max-images": ("-1", "abc", ""), "--api-key": ("",),
        "--model": ("", "sandbx", "nobody/nothing", "/no/such"),
    },
    ("verify", "--model", "toy"): {
        "--with": ("", "nope", "vhr:alpha=-1", "pag"), "--out": ("/proc/x.json", "folder.png"),
        "--model": ("nope", "painter-unett"), "--dtype": ("int8",), "--device": ("gpu",),
    },
    ("sites", "--model", "painter"): {"--model": ("nope", "", "toy"), "--dtype": ("int8",)},
    ("tune", "vhr", "--model", "toy", "--n-images", "2"): {
        "--trials": _INTS, "--n-images": (*_INTS, "1"), "--seed": ("-1", "1.5", "abc", ""),
        "--on": ("", "pop", "[/]", "pope chair", "amber", "file.txt"), "--batch-size": _INTS,
        "--objective": ("", "aucc", "f1 ", "[red]"), "--images": ("empty", ""),
        "--data": ("no.json", "", "file.txt", "empty"), "--out": _WHERE,
        "--model": ("", "painter", "nope"), "--dtype": ("int8",),
    },
    ("analyse", "heads", "--model", "toy", "--limit", "2"): {
        "--split": ("tset", ""), "--n-images": _INTS, "--limit": _INTS, "--seed": ("-1", "x"),
        "--measure": ("", "masss", "mass,divergence", "[/]", "vision_distance "),
        "--by": ("", "nope", "ablation2", "[red]"), "--top": _INTS, "--rows": _INTS,
        "--layer": ("-1", "99", "abc", "1.5", ""), "--batch-size": _INTS, "--to": ("", "one"),
        "--heads": ("", "[[0,0]", "[[0]]", "[[99,0]]", "[[0,99]]", "[[-1,0]]", "0,0", "no.json",
                    '[["a",0]]', "[[0.5,0]]", "{}", "[[0,0],[0,0,0]]", "9" * 5000),
        "--out": _WHERE, "--data": ("no.json", "file.txt", "empty"),
        "--model": ("", "painter", "nope"), "--device": ("gpu",),
    },
    ("measure", "vas", "--model", "toy", "--limit", "1"): {
        "--image": ("no.png", "file.txt", "empty", "/dev/null"), "--limit": _INTS,
        "--prompt": ("", " "),
        "--with": ("", "nope", "vhr:alpha=-1", "pag", "none@blank", "avar@nope", "vicrop", "all"),
        "--model": ("", "painter", "nope"), "--dtype": ("int8",),
    },
    ("build", "pope", "--annotations", "file.txt", "--images", "empty", "--out", "q.json"): {
        "--annotations": ("no.json", "empty", "file.txt", "", "/dev/null"),
        "--images": ("nowhere", "file.txt", ""), "--out": _WHERE,
        "--strategy": ("", "randon", "random,,popular", "random,random", "[/]"),
        "--n-images": _INTS, "--questions": (*_INTS, "5", "-2"), "--min-images": _INTS,
        "--seed": ("-1", "abc", "", "9" * 5000),
    },
    ("--load", "file.txt", "list"): {
        "--load": ("no.py", "", "empty", "file.txt", "/dev/null", "broken.py", "raises.py",
                   "leaves.py", "again.py", "nothing.py", "bytes.py"),
    },
}  # fmt: skip
_WHOLE = (
    ("eval",), ("eval", "pop"), ("eval", "[/]"), ("eval", ""), ("evall",), ("eval", "pope", "--x"),
    ("eval", "pope", "--with"), ("compare",), ("show",), ("show", "nowhere"), ("show", "file.txt"),
    ("show", "empty"), ("compare-runs", "."), ("compare-runs", "empty", "run"),
    ("compare-runs", "nowhere", "file.txt"), ("judge", "x"), ("discover", "x"),
    ("verify", "x"), ("sites", "x"), ("list", "x"), ("demo", "--x"),
    ("demo", "--out", "file.txt"), ("demo", "--out", "/proc/x"), ("animate", "x"),
    (*_ASK, "--images", "empty"), (*_ASK, "--words", "file.txt"), (*_ASK, "--json", "--markdown"),
    (*_ASK, "--temperature", "1", "--num-beams", "2"), (*_ASK, "--seeds", "3"),
    (*_ASK, "--device", "cpu", "--device-map", "auto"), (*_ASK, "--with", "vhr", "--with", "vhr"),
    (*_COMPARE, "--gif"), (*_COMPARE, "--prompts", "file.txt"), (*_COMPARE, "--with", "none"),
    (*_COMPARE, "--with", "vhr"), (*_COMPARE, "--with", "none@blank"),
    (*_ASK, "--with", "pag"), (*_CLIP, "--flow", "empty", "--estimate", "dis"),
    *((*_ASK, "--with", w) for w in (
        "vhr@", "vhr@nope", "@llava-1.5-7b", "vhr@llava-1.5-7b@blank", "vhr@[/]", "none@llava",
        "var@llava-1.5-7b:rho=-1", "var@llava-1.5-7b:nope=1", "vaf@llava-1.5-7B", "all@blank",
        "all+vhr", "all:x=1", "ALL", "all all", "vhr@" + "x" * 5000,
    )),
    (*_COMPARE, "--with", "all"), (*_CLIP, "--with", "all"), (*_COMPARE, "--with", "pag@nope"),
    ("tune",), ("tune", ""), ("tune", "nope"), ("tune", "none"), ("tune", "pag"),
    ("tune", "vhr+pai"), ("tune", "vhr:alpha=-1"), ("tune", "all"), ("tune", "vhr@nope"),
    ("tune", "headablate"), ("tune", "vhr:nope=1"), ("tune", "vhr", "pai"), ("tune", "[/]"),
    ("analyse", "head"), ("analyse", "heads", "pop"), ("analyse", "heads", ""),
    ("analyse", "overlap"), ("analyse", "overlap", "empty"), ("analyse", "overlap", "run", "run"),
    ("analyse", "overlap", "empty", "empty"), ("analyse", "overlap", "nowhere", "file.txt"),
    ("analyse", "heads", "--model", "toy", "--measure", "mass", "--by", "ablation"),
    ("analyse", "heads", "--model", "toy", "--measure", "mass", "--layer", "0"),
    ("measure", "vas2"), ("measure", "vas", "x"),  ("build", "chair"),
    ("build", "pope"),
    ("--load",), ("list", "--load"), ("list", "--load", "broken.py"), ("--load=no.py", "list"),
    (*_ASK, "--load", "broken.py"), (*_ASK, "--load", "nothing.py", "--with", "sharpen"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    for arguments in _WHOLE:
        yield command("commands", *arguments)
    for fixed, options in _OPTIONS.items():
        for option, values in options.items():
            for value in values:
                # The last one counts.
                yield command(f"options: {fixed[0]}", *fixed, option, value)
