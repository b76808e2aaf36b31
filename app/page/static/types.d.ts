// What the server sends, as app/page/views.py and app/study/page/views.py make it, and what modules share.

/** The fields of the form, by the names of `Form` in app/page/click.py. */
export interface Form {
  prompt: string;
  negative_prompt: string;
  random_seeds: boolean;
  seed: number;
  variation: string;
}

export interface StatusView {
  ready: boolean;
  message: string;
  model: string;
  edits: boolean;
  warnings: string[];
  login?: string;
}

export interface StartView {
  picture: string;
  strength: number;
}

export interface TileView {
  seed: number;
  label: string;
  picture: string;
  ready: boolean;
  step: number;
  steps: number;
  problem: string;
  kept: boolean;
  how: string;
  pick?: Pick | null;
}

export interface GridView {
  id: string;
  prompt: string;
  size?: [number, number];
  note: string;
  ignored: string[];
  busy: boolean;
  tiles: TileView[];
}

/** How far the refinement of a preview is. */
export interface Pick {
  state: "running" | "done" | "stopped";
  picture: string;
  tags: [string, string];
  percent: number;
  message: string;
}

export interface StageView {
  id: string;
  grid: string;
  state: "running" | "done" | "stopped";
  seed: number;
  label: string;
  prompt: string;
  size?: [number, number];
  preview: string;
  picture: string;
  tags: [string, string];
  percent: number;
  message: string;
  likeness: { words: string; detail: string };
  facts: [string, string][];
  link: Record<string, string>;
  file: string;
}

export interface EntryView {
  id: string;
  time: number;
  prompt: string;
  pictures: { seed: number; small: string; name: string; final: boolean; how: string }[];
}

export interface Notice {
  id: string;
  time: number;
  text: string;
  kind: "info" | "warning";
  undo?: string;
  /** the action that it answers */
  about?: string;
  /** the picture that was dropped on the page, by the name that it was given there */
  dropped?: string;
}

export interface Question {
  id: string;
  question: string;
  points: number;
  low: string;
  high: string;
  choices: string[];
}

/** A page of a study; which of the later values it has depends on its phase. */
export interface StudyView {
  phase: "consent" | "before" | "trial" | "rating" | "closing" | "thanks";
  language: string;
  words: Record<string, string>;
  text: string[];
  own_words: boolean;
  trial: string;
  heading: string;
  done: number;
  count: number;
  task: string;
  own: boolean;
  outcome: "satisfied" | "gave_up" | "timed_out";
  picture: string;
  questions: Question[];
  code: string;
}

/** One message of the stream: the views that have changed. */
export interface Views {
  status?: StatusView;
  start?: StartView | null;
  grid?: GridView | null;
  stage?: StageView | null;
  history?: EntryView[];
  notices?: Notice[];
  study?: StudyView;
  clock?: { left: number; give_up: number } | null;
}

/** Gradio's function that sends an event to the server, to its listener "act", "note" or "fill". */
export type Trigger = (event: string, values: object) => void;

/** Asks the server for an action of app/page/handlers.py. */
export type Act = (action: string, values?: object | Promise<object>) => void;

/** Told of a picture on the screen; `at` is in milliseconds since the page was opened. */
export type OnPainted = (what: "preview" | "final", seed: number, at: number) => void;
