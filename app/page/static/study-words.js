// A study's own words, in its language: app/study/plan/labels.toml and what the study file puts in their place.

/** @type {Record<string, string>} */
export const words = {};

/**
 * Return a text with values for its {places}.
 * @param {string} name
 * @param {Record<string, string | number>} values
 */
export const fill = (name, values) =>
  (words[name] || "").replace(/\{(\w+)\}/g, (_, place) => `${values[place]}`);
