"""A list in the settings file is changed where it stands, and nothing else is."""

import tomllib

import pytest

from shoal.node.config import file_text
from shoal.node.errors import ConfigError
from shoal.node.settings_edit import with_item, without_item

FORMS = {
    "no file": "",
    "other settings alone": 'name = "attic"  # upstairs',
    "as init writes it": file_text(),
    "an empty list": "allow = []\n",
    "an empty list of two lines": "  allow=[  # nobody yet\n]\ncores = 2\n",
    "one line": "allow = [\"A\", 'B']  # two\n",
    "a line for each": 'allow = [\n  "A",  # Alice, [upstairs]\n  "B",\n]\nserve = "friends"\n',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_an_item_is_put_in_and_taken_out_and_all_else_stays(text):
    before = tomllib.loads(text)
    changed = with_item(text, "allow", "C")
    after = tomllib.loads(changed)
    assert sorted(after.pop("allow")) == sorted([*before.get("allow", []), "C"])
    assert after == {name: value for name, value in before.items() if name != "allow"}
    comments = [line.partition("#")[2] for line in text.splitlines() if "# " in line]
    assert all(comment in changed for comment in comments)
    back = without_item(changed, "allow", "C")
    assert tomllib.loads(back).get("allow") == before.get("allow", [])
    assert tomllib.loads(back) | {"allow": 0} == before | {"allow": 0}


def test_what_is_there_already_or_not_there_changes_nothing():
    text = 'allow = ["A"]\n'
    assert with_item(text, "allow", "A") == text
    assert without_item(text, "allow", "B") == text
    assert without_item(text, "deny", "B") == text


@pytest.mark.parametrize("item", ["A", "B", "C"])
def test_each_place_of_a_list_can_be_taken_out(item):
    text = "allow = ['A', 'B',\n 'C']\ndeny = ['A', 'B', 'C']"
    left = tomllib.loads(without_item(text, "allow", item))
    assert left["allow"] == [each for each in "ABC" if each != item]
    assert left["deny"] == ["A", "B", "C"]


@pytest.mark.parametrize("text", ['allow = "A,B"\n', '"allow" = ["A"]\n'])
def test_a_list_in_another_form_is_left_alone_with_the_line_to_write(text):
    with pytest.raises(ConfigError) as caught:
        with_item(text, "allow", "C")
    assert caught.value.code == "list_not_changed"
    assert 'allow = ["A", ' in caught.value.hint
