// How app/page/static/*.js are written; tsc checks their types, see tsconfig.json.
import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: [".venv*/", "build/", "data/"] },
  js.configs.recommended,
  {
    files: ["app/page/static/*.js"],
    languageOptions: { globals: globals.browser },
    rules: {
      eqeqeq: "error",
      "no-var": "error",
      "prefer-const": "error",
      "no-implicit-globals": "error",
      "object-shorthand": "error",
      "prefer-template": "error",
      "no-restricted-properties": ["error", { property: "innerHTML", message: "Text goes in as text." }],
    },
  },
];
