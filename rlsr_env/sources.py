"""What the sets that can be downloaded consist of: addresses, checksums, numbers of pictures, terms."""

from __future__ import annotations

from dataclasses import dataclass

from rlsr_env.fetch import RemoteFile


@dataclass(frozen=True)
class Source:
    """Where a set comes from, and on what terms.

    Attributes:
        base: Address of the server's folder.
        files: Pictures, or zip archives of pictures.
        pictures: How many pictures that makes.
        licence: The terms of the pictures, as far as they are known.
        description: One sentence about the content.
    """

    base: str
    files: tuple[RemoteFile, ...]
    pictures: int
    licence: str
    description: str


# Sizes and SHA-256 of kodim01.png to kodim24.png, computed from a copy of the suite.
_KODAK = (
    (736501, "a56e27cbf5f843c048b6af1d6e090760e9c92fadba88b7dee0205918a37523bd"),
    (617995, "4f4b74a79237e311d72cad958237b5f7088d8bce1c82305ebefe1a70e3022dfd"),
    (502888, "e25ca1ff2f0c0cb5fdfd5f9b0a0bb21ac4c3de3c84a67f35b09a85d3306249db"),
    (637432, "e3b946107c5d3441c022f678d0c3caf1e224d81b1604ba840a4f88e562de61aa"),
    (785610, "10349e963c5c813d327852f82c1795fa4148d69fedffc4c589bee458e3ac3d53"),
    (618959, "363510303b715d4cbc384e1ce227e466b613a09e1b71ae985882bf8e7fbd9b18"),
    (566322, "b77d3f006f42414bb242222e0482e750c0fb9e5ee8d4bed2f6f11c5605fe54a4"),
    (788470, "ba23983c76b4832ee0e8af0592664756841a16779acd69f792e268fb6d13d6e7"),
    (582899, "6a4361c2fc194feb4edaa9f9a4a0620fb9943e460ac7fdf037fb0f6dd6607a7d"),
    (593463, "9dfb70f5867c29ff9ed6313683f19b3d867849e40fbc0c4c54a4a89df341cf23"),
    (621023, "7936814b58b5387fce2e4e2488b4ec830dadd95fa9520f358ddb30990b50f2b6"),
    (531024, "d78c37c2f04f23761ed2367dd77e2db584ddd4c3950833fecf89f199a8126980"),
    (822712, "bc34a3ce58dea09dce1704c997171602de90cb34d0c8503a988b77f473d39b08"),
    (692201, "55a94550ff18f3246c4074fd32b77b0c74447c26b6ad274d564d999c0450ba6e"),
    (612582, "7538cbb80cb9103606c48b806eae57d56c885c7f90b9b3be70a41160f9cbb683"),
    (534247, "a89c7268ccd4718ba424a99fc4643c572cf692ca6eae887185ceb4e9f11d2e54"),
    (602078, "37afcc89fbdcb76d9518e04b2fc011027e2f4cd14b3b2f83cefd721641a47c5b"),
    (780947, "1a9258c365988961d87a0598725b609139c303ad48a5aad6c503c3b1a87849aa"),
    (671476, "b7450b264b1b0a411390d8931b112c27905a992520fc90569dc4b920aa32bbdc"),
    (492462, "3b46c71e3b92a563820ba32936be8330c586c41f938efd94be938386aae4328a"),
    (637051, "ac958597c82073f6bb65129c68f72b651db5b9efd82e11547d07350214bc268b"),
    (701970, "1cee58eb1f2d9c7ebb254d208a03c783ce6cf2c4d8c2cf45e235dd23b4ce1b29"),
    (557596, "e3111a2fd4da24af15d6459ef9eacfe54106b38e27b4a21821b75c3f5d2d5baf"),
    (706397, "1071c68372cc5a01435c2c225a5cf7d4bb803846ec08bb6b3d6721b156d7cb96"),
)

# Sizes and SHA-256 of the archives at ETH Zurich: TensorFlow Datasets, url_checksums/div2k.txt and clic.txt.
_ETH = "https://data.vision.ee.ethz.ch/cvl/"
_DIV2K_LICENCE = "for academic research only; the copyright of each picture is its owner's"
_PROFESSIONAL_LICENCE = f"Unsplash licence, {_ETH}clic/LICENSE_professional_2020.txt"
_UNSTATED_LICENCE = "no licence is stated; released for the Challenge on Learned Image Compression"


def _archive(path: str, size: int, sha256: str, pictures: int, licence: str, description: str) -> Source:
    return Source(_ETH, (RemoteFile(path, size, sha256),), pictures, licence, description)


SOURCES: dict[str, Source] = {
    "kodak": Source(
        "https://r0k.us/graphics/kodak/kodak/",
        tuple(RemoteFile(f"kodim{n:02d}.png", size, sha256) for n, (size, sha256) in enumerate(_KODAK, start=1)),
        24,
        "released by the Eastman Kodak Company for unrestricted usage, says https://r0k.us/graphics/kodak/",
        "Kodak lossless true color image suite: 24 photographs of 768x512 or 512x768",
    ),
    "div2k:train": _archive(
        "DIV2K/DIV2K_train_HR.zip",
        3530603713,
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
        800,
        _DIV2K_LICENCE,
        "DIV2K, training split: 800 photographs of 2K resolution",
    ),
    "div2k:valid": _archive(
        "DIV2K/DIV2K_valid_HR.zip",
        448993893,
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
        100,
        _DIV2K_LICENCE,
        "DIV2K, validation split: 100 photographs of 2K resolution",
    ),
    "clic2020-professional:train": _archive(
        "clic/professional_train_2020.zip",
        2003385131,
        "54a2a684b5cbd0db91770a8695efb774fed1f612194fee68bceaf6b1c48e5d5f",
        585,
        _PROFESSIONAL_LICENCE,
        "CLIC 2020 professional, training split: 585 photographs from Unsplash",
    ),
    "clic2020-professional:valid": _archive(
        "clic/professional_valid_2020.zip",
        134834429,
        "00be38092ade2ab5163b65f7f6523d46c7bca147007f559adbb02c0afc236b7d",
        41,
        _PROFESSIONAL_LICENCE,
        "CLIC 2020 professional, validation split: 41 photographs from Unsplash",
    ),
    "clic2020-professional:test": _archive(
        "clic/test/CLIC2020Professional_test.zip",
        891643809,
        "857df244fc2bfa5da28d4c66bf0db16ee99bfc79eb807be8afa89cd507852884",
        250,
        _UNSTATED_LICENCE,
        "CLIC 2020 professional, test split: 250 photographs",
    ),
    "clic2020-mobile:train": _archive(
        "clic/mobile_train_2020.zip",
        4042923971,
        "4bf9d890e6785426fb41cb4f43df3d8cd6db25fafcc76fc1eb629141166d6529",
        1048,
        _UNSTATED_LICENCE,
        "CLIC 2020 mobile, training split: 1048 photographs taken with phones",
    ),
    "clic2020-mobile:valid": _archive(
        "clic/mobile_valid_2020.zip",
        236556531,
        "ff0280382eeb32fdceb28c81a7f47ac9ad86d933ebe901680845635d04e47a10",
        61,
        _UNSTATED_LICENCE,
        "CLIC 2020 mobile, validation split: 61 photographs taken with phones",
    ),
    "clic2020-mobile:test": _archive(
        "clic/test/CLIC2020Mobile_test.zip",
        721789976,
        "2025f07a6c652270e534640de4271feef3b3dd3260beed4ac4821064837aa732",
        178,
        _UNSTATED_LICENCE,
        "CLIC 2020 mobile, test split: 178 photographs taken with phones",
    ),
}
