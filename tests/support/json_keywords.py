"""A schema for each keyword of JSON Schema 2020-12 that llguidance supports, in each way of use."""

from __future__ import annotations

from tests.support.json_schemas import Schema

_POINT: Schema = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}

KEYWORD_SCHEMAS: dict[str, Schema] = {
    # What a document is.
    "type-string": {"type": "string"},
    "type-integer": {"type": "integer"},
    "type-number": {"type": "number"},
    "type-boolean": {"type": "boolean"},
    "type-null": {"type": "null"},
    "type-object": {"type": "object"},
    "type-array": {"type": "array"},
    "type-list": {"type": ["integer", "array", "null"]},
    "no-type": {"maxLength": 2, "maximum": 3, "maxItems": 1, "maxProperties": 1},
    "anything": {"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c"},
    "const-number": {"const": 12.5},
    "const-object": {"const": {"a": [1, {"b": None}], "c": 'q"\\\n'}},
    "enum-mixed": {"enum": ["a", "ab", "", 1, None, False, [1], {"a": 1}]},
    "enum-of-type": {"type": "string", "enum": ["a", "b", 3]},
    "enum-unicode": {"enum": ["ß", "日本", "😀", "\u0001"]},
    # Strings.
    "minLength": {"type": "string", "minLength": 3},
    "maxLength": {"type": "string", "maxLength": 3},
    "maxLength-0": {"type": "string", "maxLength": 0},
    "exact-length": {"type": "string", "minLength": 5, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[a-c]+x?$"},
    "pattern-unanchored": {"type": "string", "pattern": "[b-z]"},
    "pattern-classes": {"type": "string", "pattern": r"^\d\w\s[^a-z]$"},
    "pattern-alternatives": {"type": "string", "pattern": "^(ab|a|(c|d){2,3})$"},
    "pattern-quotes": {"type": "string", "pattern": r'^["\\/]{2}$'},
    "pattern-and-length": {"type": "string", "pattern": "^a+$", "minLength": 3, "maxLength": 4},
    "format-date": {"type": "string", "format": "date"},
    "format-time": {"type": "string", "format": "time"},
    "format-date-time": {"type": "string", "format": "date-time"},
    "format-duration": {"type": "string", "format": "duration"},
    "format-email": {"type": "string", "format": "email"},
    "format-hostname": {"type": "string", "format": "hostname"},
    "format-ipv4": {"type": "string", "format": "ipv4"},
    "format-ipv6": {"type": "string", "format": "ipv6"},
    "format-uuid": {"type": "string", "format": "uuid"},
    # Numbers.
    "minimum": {"type": "integer", "minimum": 42},
    "maximum": {"type": "integer", "maximum": -42},
    "minimum-number": {"type": "number", "minimum": 1.25},
    "range": {"type": "integer", "minimum": -3, "maximum": 1007},
    "range-of-one": {"type": "integer", "minimum": 9, "maximum": 9},
    "range-number": {"type": "number", "minimum": -0.5, "maximum": 0.25},
    "exclusive": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 11},
    "exclusive-number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
    "multipleOf": {"type": "integer", "multipleOf": 3},
    "multipleOf-range": {"type": "integer", "multipleOf": 25, "minimum": 1, "maximum": 100},
    "multipleOf-decimal": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9},
    # Arrays.
    "items": {"type": "array", "items": {"type": "boolean"}},
    "items-false": {"type": "array", "items": False},
    "minItems": {"type": "array", "items": {"type": "null"}, "minItems": 2},
    "maxItems": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    "maxItems-0": {"type": "array", "maxItems": 0},
    "prefixItems": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    "prefixItems-closed": {"prefixItems": [{"const": 1}], "items": False, "type": "array"},
    "prefixItems-open": {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}},
    "array-of-arrays": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "maxItems": 3,
    },
    # Objects.
    "properties": {"type": "object", "properties": {"a": {"type": "integer"}, "b": True}},
    "required": {"type": "object", "properties": {"a": True, "b": {"const": 1}}, "required": ["b"]},
    "required-only": {"type": "object", "required": ["k"]},
    "additionalProperties-false": _POINT,
    "additionalProperties": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "additionalProperties-beside": {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "additionalProperties": {"type": "integer"},
        "required": ["a"],
    },
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^i_": {"type": "integer"}, "^s_": {"type": "string"}},
        "additionalProperties": False,
    },
    "patternProperties-beside": {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "patternProperties": {"^x+$": {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
    },
    "minProperties": {"type": "object", "minProperties": 1},
    "maxProperties": {"type": "object", "maxProperties": 1},
    "empty-object": {"type": "object", "additionalProperties": False},
    "names-to-escape": {
        "type": "object",
        "properties": {'a"b': {"const": 1}, "c\\d": {"const": 2}, "e\nf": {"const": 3}},
        "required": ['a"b', "c\\d", "e\nf"],
        "additionalProperties": False,
    },
    # Combinations.
    "anyOf": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
    "anyOf-objects": {"anyOf": [_POINT, {"type": "object", "required": ["z"]}]},
    "anyOf-siblings": {"type": "string", "anyOf": [{"maxLength": 2}, {"pattern": "^abc+$"}]},
    "allOf": {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 12}]},
    "allOf-objects": {"allOf": [_POINT | {"additionalProperties": True}, {"required": ["z"]}]},
    "oneOf-types": {"oneOf": [{"type": "string"}, {"type": "number"}]},
    "oneOf-discriminator": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": k}, "v": v}, "required": ["k", "v"]}
            for k, v in (("a", {"type": "integer"}), ("b", {"type": "boolean"}))
        ]
    },
    # References.
    "ref-defs": {"$defs": {"p": _POINT}, "type": "array", "items": {"$ref": "#/$defs/p"}},
    "ref-definitions": {"definitions": {"p": _POINT}, "$ref": "#/definitions/p"},
    "ref-to-property": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "ref-escaped": {"$defs": {"a/b~c": {"const": 1}}, "$ref": "#/$defs/a~1b~0c"},
    "ref-siblings": {"$defs": {"s": {"type": "string"}}, "$ref": "#/$defs/s", "maxLength": 3},
    "ref-root": {
        "type": "object",
        "properties": {"child": {"$ref": "#"}},
        "additionalProperties": False,
    },
    "ref-mutual": {
        "$defs": {
            "a": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/b"}}]},
            "b": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/a"}]},
        },
        "$ref": "#/$defs/a",
    },
    # As people write them for extraction.
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "email": {"type": ["string", "null"], "format": "email"},
            "tags": {"type": "array", "items": {"enum": ["vip", "new"]}, "maxItems": 3},
            "address": {
                "type": "object",
                "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                "required": ["zip"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "age", "email", "tags", "address"],
        "additionalProperties": False,
    },
    "tool-call": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, arguments in (
                ("move", _POINT),
                ("stop", {"type": "object", "maxProperties": 0}),
            )
        ]
    },
}
