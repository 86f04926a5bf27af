// The Vercel AI SDK with its default OpenAI provider, over several turns with a tool: from the second
// on it names the items of earlier answers by their ids. Run by tests/compat/test_node.py for each of
// its majors: MILLRACE_AI and MILLRACE_AI_OPENAI name the packages.

import assert from "node:assert/strict";

import { z } from "zod";

const { generateText, streamText, tool } = await import(process.env.MILLRACE_AI);
const { createOpenAI } = await import(process.env.MILLRACE_AI_OPENAI);

const sent = [];
const openai = createOpenAI({
  baseURL: process.env.MILLRACE_URL,
  apiKey: process.env.MILLRACE_API_KEY,
  fetch: (url, options) => {
    sent.push(options.body);
    return fetch(url, options);
  },
});
const shared = {
  model: openai("demo"),
  temperature: 0,
  tools: {
    get_weather: tool({
      description: "The weather in a city",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => ({ city, degrees: 21 }),
    }),
  },
};
const messages = [{ role: "user", content: "What is the weather in Paris?" }];

const first = await generateText({
  ...shared,
  messages,
  toolChoice: { type: "tool", toolName: "get_weather" },
});
assert.equal(first.toolCalls.length, 1);
messages.push(...first.response.messages, { role: "user", content: "And now?" });

const second = await generateText({ ...shared, messages, toolChoice: "none", maxOutputTokens: 20 });
assert.ok(second.text);
messages.push(...second.response.messages, { role: "user", content: "Thanks." });

const third = streamText({ ...shared, messages, toolChoice: "none", maxOutputTokens: 20 });
let text = "";
for await (const part of third.textStream) text += part;
assert.ok(text);
assert.match(sent.at(-1), /item_reference/);
