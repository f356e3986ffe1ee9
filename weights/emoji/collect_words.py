"""Write what else people call the emoji, for `gencli train image --captions captions.jsonl --captions words.jsonl`.

The words are CLDR's keywords (npm package cldr-annotations-full, Unicode licence) and the short names of chat programs
(npm package emojibase-data, MIT), both unpacked:

    python collect_words.py captions.jsonl cldr-annotations-full/package emojibase-data/package > words.jsonl
"""

import json
import sys
from pathlib import Path

captions, cldr, emojibase = map(Path, sys.argv[1:])
SHORT_NAMES = ("github", "iamcal", "joypixels", "emojibase")

keywords = json.loads((cldr / "annotations/en/annotations.json").read_text("utf-8"))["annotations"]["annotations"]
tables = [json.loads((emojibase / f"en/shortcodes/{name}.json").read_text("utf-8")) for name in SHORT_NAMES]
for line in captions.read_text("utf-8").splitlines():
    row = json.loads(line)
    emoji = row["emoji"].replace("\ufe0f", "")
    listed = [table.get("-".join(f"{ord(letter):04X}" for letter in emoji), []) for table in tables]
    names = {name for entry in listed for name in ([entry] if isinstance(entry, str) else entry)}
    spoken = {name.replace("_", " ").replace("-", " ").strip() for name in names} - {row["label"].lower()}
    tags = {word.lower() for word in keywords.get(emoji, {}).get("default", [])} - {*row["tags"], row["label"].lower()}
    for name in sorted(name for name in spoken if len(name) > 2):
        found = {"file": row["file"], "label": name, "tags": sorted(tags)}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        tags = set()
