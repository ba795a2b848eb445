"""What MkDocs calls while it builds: generated pages, pages from the checkout's root, llms.txt.

Links are written so that they also work where the Markdown lies in the repository; here they are
turned into links of the site. One that leads nowhere fails the strict build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import reference_pages
import settings_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

GENERATED = {
    "reference/settings.md": settings_pages.settings_page,
    "reference/recipes.md": settings_pages.recipes_page,
    "reference/metrics.md": reference_pages.metrics_page,
    "reference/canaries.md": reference_pages.canaries_page,
    "reference/commands.md": reference_pages.commands_page,
    "reference/python.md": reference_pages.api_page,
    "map.md": reference_pages.map_page,
}
"""Page to the function that writes it."""

FROM_ROOT = {
    "SECURITY.md": "project/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "AGENTS.md": "project/agents.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""Files beside docs/ that are pages too."""

_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+\.(?:md|png|ipynb|py|toml))(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and those of the root."""
    for name, write in GENERATED.items():
        files.append(File.generated(config, name, content=write()))
    for source, name in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository, as links between pages."""
    place = page.file.src_uri
    origin = next((s for s, name in FROM_ROOT.items() if name == place), f"docs/{place}")

    def turn(match: re.Match[str]) -> str:
        text, link, anchor = match.group(1), match.group(2), match.group(3) or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
        is_page = target in FROM_ROOT or target.startswith("docs/")
        if not is_page and (ROOT / target).exists():
            return text  # A file of the repository that the site does not have.
        name = FROM_ROOT.get(target, target.removeprefix("docs/"))
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(place) or '.')}{anchor})"

    return _LINK.sub(turn, markdown)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Keeps the order of pages for llms.txt."""
    config.extra["pages"] = list(nav.pages)
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Writes llms.txt: every page with its first sentence, for coding assistants."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for page in config.extra["pages"]:
        text = first_paragraph(page.file.content_string)
        lines.append(f"- [{page.title}]({page.file.dest_uri}): {text}")
    path = Path(config.site_dir) / "llms.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def first_paragraph(markdown: str) -> str:
    """The first sentence of a page's first paragraph, without markup."""
    for paragraph in re.split(r"\n\s*\n", markdown):
        if re.match(r"[^\W\d_]|`(?!``)", paragraph):
            text = " ".join(paragraph.split())
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
            return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return ""
