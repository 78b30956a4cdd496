import type { Language } from './facts.ts';

/**
 * Sentences about questions, answers and careful thought, with no medical fact in them. They give the base the everyday
 * words of instructions, so that a prompt is not made of tokens it has never met.
 */
export const generalProse: Record<Language, readonly string[]> = {
  en: [
    'An instruction sets a task and describes how to do it.',
    'Below the title there is often an input that gives the details and the context.',
    'A good response fits the question that it answers.',
    'Write clearly, and write only what completes the request.',
    'Before you answer, it helps to think carefully about the question.',
    'A chain of thoughts goes step by step from what is known to what is asked.',
    'Reason through a case slowly, so that the response is sound and complete.',
    'You are a reader with broad experience and advanced knowledge.',
    'A physician or another medical expert has experience in many fields.',
    'Clinical reasoning, diagnosis and treatment planning are learned in practice.',
    'Answer the following question in one sentence.',
    'Whoever wants to give an accurate answer must have time to think.',
    'The teacher gave an instruction, a medical question and the time for a response.',
    'This text is a demonstration and not medical advice.',
    'A response ends when the request is complete.',
    'The task that follows is simple: read, think, answer.',
    'Let me think about the question first.',
    'The question is short, so the answer is short.',
    'I recall what I have read about it.',
    'So the answer follows from what is known.',
    'Question, thought and answer follow one another.',
    'Answer only when the thought is complete.',
  ],
  zh: [
    '指令描述一项任务。',
    '题目下面常有提供进一步信息的输入。',
    '好的回答与问题相配。',
    '请写出适当完成请求的内容。',
    '在回答之前，请仔细思考问题。',
    '逐步的思考过程从已知走到所问。',
    '仔细思考使回答合乎逻辑而且准确。',
    '医学专家在许多领域具有高级知识。',
    '临床推理、诊断和治疗计划要在实践中学习。',
    '请回答以下问题。',
    '为确保回答准确，先要留出思考的时间。',
    '老师给出指令、问题和上下文。',
    '本文仅为演示，不是医疗建议。',
    '请求完成，回答就结束。',
    '以下任务很简单：阅读、思考、回答。',
    '先想一想这个问题。',
    '问题很短，所以答案也很短。',
    '回忆一下读过的内容。',
    '由已知可以得出答案。',
    '先有问题，再有思考，最后有答案。',
    '做法如下：先思考，后回答。',
    '答案写在思考之后。',
    '请注意：答案要简短。',
  ],
};

/** The headings of a page of exercises: over a question and over its solution. */
type Headings = { readonly question: readonly string[]; readonly solution: readonly string[] };

/** Headings of pages of exercises, by language. */
export const worksheetHeadings: Record<Language, Headings> = {
  en: {
    question: ['Exercise', 'Question', 'Task', 'Problem', 'Case'],
    solution: ['Thought', 'Response', 'Reply', 'Solution', 'Note'],
  },
  zh: { question: ['练习', '问题', '题目', '病例', '任务'], solution: ['思考', '回答', '回复', '解答', '笔记'] },
};
